"""Graph files of the AutoGPT Platform, as it exports them.

`id`, `version`, `name`
    What the graph is called; without a name, its id and version.
`nodes`
    `id`, `block_id`, `input_default` (optional). What else a node has (metadata, webhooks) is not looked at.
`links`
    `source_id`, `source_name`, `sink_id`, `sink_name`, `is_static` (optional). Pins may name a place inside a value:
    see `shmcache.nested_pins`.
`sub_graphs`
    (optional) Graphs of this format that nodes of this one run. Each becomes a graph of its own.

Every node without input links is started. Blocks that are not installed here are an error, or, with `replay`, are stood
in for: `shmcache.blocks.replaying`. Such a graph may have cycles that nothing leaves, and nodes that nothing reaches:
what bounds a run is a limit on its steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shmcache.blocks import get_block
from shmcache.blocks.replaying import REPLAY, ReplayBlock
from shmcache.errors import UnknownBlock
from shmcache.graphs.document import Spot, shown
from shmcache.graphs.draft import Draft, DraftLink, DraftNode

_DEEPEST = 20


def is_platform_graph(document: Spot) -> bool:
    """Say whether a document is of this format: its nodes have a `block_id`."""
    nodes = document.entries().get("nodes")
    return isinstance(nodes, list) and bool(nodes) and isinstance(nodes[0], dict) and "block_id" in nodes[0]


def drafts_of_platform(document: Spot, seed: int | None) -> list[Draft]:
    """Return the checked graphs of a file, its own first, then its sub-graphs, each once. Raises GraphFileError.

    With a `seed`, blocks that are not installed are stood in for; without one they are an error."""
    document.storable()
    drafts: dict[str, Draft] = {}
    for name, spot in _graphs(document, 0):
        if name not in drafts:
            drafts[name] = _draft(name, spot, seed)
    return list(drafts.values())


def _graphs(spot: Spot, depth: int) -> Iterator[tuple[str, Spot]]:
    if depth > _DEEPEST:
        spot.fail(f"sub-graphs within one another, deeper than {_DEEPEST} levels")
    version = spot["version"].number() if "version" in spot else 1
    name = f"{spot['id'].name()} v{version}"
    yield (f"{spot['name'].text()} ({name})" if "name" in spot else name), spot
    for each in spot["sub_graphs"].items() if "sub_graphs" in spot else ():
        yield from _graphs(each, depth + 1)


def _draft(name: str, spot: Spot, seed: int | None) -> Draft:
    nodes: dict[str, Spot] = {}
    for each in spot["nodes"].items():
        identifier = each["id"].name()
        if identifier in nodes:
            each["id"].fail(f"{shown(identifier)} is the id of {nodes[identifier].place} too")
        nodes[identifier] = each
    links = tuple(dict.fromkeys(_link(each, nodes) for each in (spot["links"].items() if "links" in spot else ())))
    linked = {link.sink for link in links}
    made = tuple(_node(identifier, each, links, seed) for identifier, each in nodes.items())
    return Draft(name, made, links, {node.name: {} for node in made if node.name not in linked})


def _link(spot: Spot, nodes: dict[str, Spot]) -> DraftLink:
    for end in ("source_id", "sink_id"):
        if spot[end].name() not in nodes:
            spot[end].fail(f"there is no node {shown(spot[end].value)}")
    is_static = spot["is_static"].boolean() if "is_static" in spot else False
    source, output, sink, name = (spot[key].name() for key in ("source_id", "source_name", "sink_id", "sink_name"))
    return DraftLink(source, output, sink, name, is_static)


def _node(identifier: str, spot: Spot, links: tuple[DraftLink, ...], seed: int | None) -> DraftNode:
    block_id = spot["block_id"].name()
    default: dict[str, Any] = spot["input_default"].entries() if "input_default" in spot else {}
    try:
        get_block(block_id)
        return DraftNode(identifier, block_id, default, {})
    except UnknownBlock as error:
        if seed is None:
            spot["block_id"].fail(f"{error}; --blocks replay stands in for what is not installed")
    outputs = list(dict.fromkeys(link.output for link in links if link.source == identifier))
    told = {"block": block_id, "node": identifier, "seed": seed, "outputs": outputs}
    return DraftNode(identifier, ReplayBlock.id, default, {REPLAY: told})
