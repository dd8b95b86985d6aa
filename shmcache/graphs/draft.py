"""What a graph file says, before it has identifiers; and the graph that it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from shmcache.frozen import freeze
from shmcache.identifiers import derived_id
from shmcache.records import Graph, Link, NodeDefinition


class DraftNode(NamedTuple):
    """A node by its name in the file."""

    name: str
    block_id: str
    input_default: Mapping[str, Any]
    constants: Mapping[str, Any]


class DraftLink(NamedTuple):
    """A link between nodes by their names in the file."""

    source: str
    output: str
    sink: str
    input: str
    is_static: bool = False


class Draft(NamedTuple):
    """A whole, checked graph. `starts` maps the names of the nodes to start to their inputs."""

    name: str
    nodes: Sequence[DraftNode]
    links: Sequence[DraftLink]
    starts: Mapping[str, Mapping[str, Any]]


class LoadedGraph(NamedTuple):
    """A graph and the definitions of all its nodes, as loaded from a file."""

    graph: Graph
    nodes: tuple[NodeDefinition, ...]


def build(draft: Draft, time_scale: float) -> LoadedGraph:
    """Return the graph of a draft. Its identifiers come from its content: the same content, the same identifiers."""
    content = json.dumps([*draft, float(time_scale)], sort_keys=True, separators=(",", ":"))
    graph_id = derived_id("graph", content)
    ids = {node.name: derived_id(graph_id, node.name) for node in draft.nodes}
    entering: dict[str, list[Link]] = {name: [] for name in ids}
    leaving: dict[str, list[Link]] = {name: [] for name in ids}
    for each in draft.links:
        link = Link(ids[each.source], each.output, ids[each.sink], each.input, each.is_static)
        leaving[each.source].append(link)
        entering[each.sink].append(link)
    nodes = tuple(
        NodeDefinition(
            id=ids[node.name],
            graph_id=graph_id,
            name=node.name,
            block_id=node.block_id,
            input_default=freeze(dict(node.input_default)),
            constants=freeze(dict(node.constants)),
            input_links=tuple(entering[node.name]),
            output_links=tuple(leaving[node.name]),
        )
        for node in draft.nodes
    )
    starts = freeze({ids[name]: dict(inputs) for name, inputs in draft.starts.items()})
    return LoadedGraph(Graph(graph_id, draft.name, tuple(ids.values()), starts), nodes)
