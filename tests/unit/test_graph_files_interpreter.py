"""A tiny interpreter of graphs, to check what graph files become without the rest of the product.

It keeps the same rules as the manager: a node runs when every linked input has come, a value goes to the oldest waiting
execution that lacks its input, a static link's last value is given again to every later execution."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from shmcache.blocks import get_block
from shmcache.frozen import thaw
from shmcache.graphs import LoadedGraph, load_graph_file


class Run(NamedTuple):
    """One run of a node: what its block was given and what it yielded."""

    node: str
    inputs: dict[str, Any]
    outputs: list[tuple[str, Any]]


def interpret(loaded: LoadedGraph, seed: int = 0, most_runs: int = 100_000) -> list[Run]:
    """Run a graph to its end, taking ready executions in a random order; return all runs."""
    choose = random.Random(seed)
    nodes = {node.id: node for node in loaded.nodes}
    linked = {node.id: {link.sink_name for link in node.input_links} for node in loaded.nodes}
    waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
    static: dict[str, dict[str, Any]] = defaultdict(dict)
    ready = [(node_id, dict(inputs)) for node_id, inputs in loaded.graph.starts.items()]
    runs: list[Run] = []

    def wake(node_id: str) -> None:
        for arrived in [each for each in waiting[node_id] if linked[node_id] <= each.keys()]:
            waiting[node_id] = [each for each in waiting[node_id] if each is not arrived]
            ready.append((node_id, arrived))

    while ready:
        node_id, arrived = ready.pop(choose.randrange(len(ready)))
        node = nodes[node_id]
        inputs = thaw({**node.input_default, **arrived, **node.constants})
        run = Run(node.name, thaw(inputs), list(get_block(node.block_id).run(inputs)))
        runs.append(run)
        assert len(runs) <= most_runs
        for name, value in run.outputs:
            for link in node.output_links:
                if link.source_name != name:
                    continue
                sink = link.sink_node_id
                lacking = [each for each in waiting[sink] if link.sink_name not in each]
                if link.is_static:
                    static[sink][link.sink_name] = value
                if lacking or not link.is_static:
                    if not lacking:
                        waiting[sink].append({**static[sink]})
                        lacking = waiting[sink][-1:]
                    for each in lacking if link.is_static else lacking[:1]:
                        each[link.sink_name] = value
                elif linked[sink] <= static[sink].keys():
                    waiting[sink].append({**static[sink]})
                wake(sink)
    return runs


def _graph(tmp_path: Path, nodes: list[dict[str, Any]], links: list[tuple[str, str, str, str, bool]]) -> LoadedGraph:
    keys = ("source", "output", "sink", "input", "is_static")
    text = json.dumps({"name": "g", "nodes": nodes, "links": [dict(zip(keys, link, strict=True)) for link in links]})
    path = tmp_path / "graph.json"
    path.write_text(text)
    return load_graph_file(path)


def test_each_item_of_a_list_makes_a_run_of_the_next_node(tmp_path: Path) -> None:
    nodes: list[dict[str, Any]] = [
        {"id": "list", "block": "shmcache.list_iteration", "constants": {"items": [1, 2, 3]}},
        {"id": "out", "block": "shmcache.output"},
    ]
    runs = interpret(_graph(tmp_path, nodes, [("list", "item", "out", "value", False)]))
    assert sorted(run.outputs[0][1] for run in runs if run.node == "out") == [1, 2, 3]


def test_a_static_value_is_given_to_every_execution_whenever_it_comes(tmp_path: Path) -> None:
    nodes = [
        {"id": "list", "block": "shmcache.list_iteration", "constants": {"items": [1, 2, 3]}},
        {"id": "ten", "block": "shmcache.constant", "constants": {"value": 10}},
        {"id": "times", "block": "shmcache.arithmetic", "constants": {"expression": "a * b"}},
    ]
    links = [("list", "item", "times", "a", False), ("ten", "value", "times", "b", True)]
    for seed in range(5):
        runs = interpret(_graph(tmp_path, nodes, links), seed)
        assert sorted(run.outputs[0][1] for run in runs if run.node == "times") == [10, 20, 30]
