"""The shape of a graph: its cycles, and whether all of it can ever run."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence


def cycles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the strongly connected parts of a graph that hold a cycle, each as the list of its nodes.

    `edges` maps each node to those its links lead to. (Tarjan's algorithm, without recursion.)"""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    stacked: set[str] = set()
    found: list[list[str]] = []
    for root in edges:
        if root in number:
            continue
        path = [(root, iter(edges[root]))]
        number[root] = lowest[root] = len(number)
        stack.append(root)
        stacked.add(root)
        while path:
            node, following = path[-1]
            for target in following:
                if target not in number:
                    number[target] = lowest[target] = len(number)
                    stack.append(target)
                    stacked.add(target)
                    path.append((target, iter(edges[target])))
                    break
                if target in stacked:
                    lowest[node] = min(lowest[node], number[target])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == number[node]:
                    part: list[str] = []
                    while not part or part[-1] != node:
                        part.append(stack.pop())
                        stacked.discard(part[-1])
                    if len(part) > 1 or node in edges[node]:
                        found.append(part[::-1])
    return found


def stuck_inputs(nodes: Sequence[str], links: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Return the nodes that can never run, each with the name of an input that nothing can ever reach.

    A node can run when each of its linked inputs has a link from a node that can. `links` are triples of source node,
    sink node and input name."""
    waiting: dict[str, set[str]] = {node: set() for node in nodes}
    leaving: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for source, sink, name in links:
        waiting[sink].add(name)
        leaving[source].append((sink, name))
    runnable = deque(node for node in nodes if not waiting[node])
    while runnable:
        for sink, name in leaving[runnable.popleft()]:
            if name in waiting[sink]:
                waiting[sink].remove(name)
                if not waiting[sink]:
                    runnable.append(sink)
    return {node: min(names) for node, names in waiting.items() if names}
