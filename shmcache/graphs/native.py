"""Our own graph format: a JSON object.

::

    {
      "name": "greeting",
      "nodes": [
        {"id": "who", "block": "shmcache.input", "constants": {"name": "who"}},
        {"id": "greet", "block": "shmcache.text_template", "constants": {"template": "Hello {{ who }}"}},
        {"id": "greeting", "block": "shmcache.output"}
      ],
      "links": [
        {"source": "who", "output": "value", "sink": "greet", "input": "who"},
        {"source": "greet", "output": "text", "sink": "greeting", "input": "value"}
      ],
      "input": {"who": "world"}
    }

`name`
    What the graph is called. Required.
`nodes`
    At least one. `id`: unique in the file. `block`: a block's id, or an import path "package.module:ClassName".
    `input_default` (optional): values for inputs that are not linked, or that nothing has come to. `constants`
    (optional): values that nothing overrides; an input with a constant cannot be linked.
`links`
    (optional) Each value that node `source` yields under the name `output` goes to the input `input` of node `sink`.
    `is_static` (optional, false): its last value is given again to every later execution of the sink.
`input`
    (optional) A value for each `shmcache.input` node without links, by the `name` among that node's constants or
    defaults (without one, by the node's id). A node whose name is not here takes its default `value`, and must have
    one. A name here that no node takes is an error.
`description`
    (optional, here and in a node) Text for people.

Nodes without input links run once, at the start. A node with linked inputs runs each time all of them have come. Where
several links lead to one input, whichever value comes first is taken first: so a loop is a cycle whose entry input is
linked from outside (the first round) and from inside (the next ones). Every cycle needs a link that enters it
and one that leaves it.
"""

from __future__ import annotations

from typing import Any

from shmcache.blocks import Block, get_block
from shmcache.blocks.block import accepts
from shmcache.errors import UnknownBlock
from shmcache.graphs.document import Spot, shown
from shmcache.graphs.draft import Draft, DraftLink, DraftNode
from shmcache.graphs.structure import cycles, stuck_inputs

INPUT_BLOCK = "shmcache.input"


def draft_of_native(document: Spot) -> Draft:
    """Return the checked content of a graph file of our own format. Raises GraphFileError."""
    document.only("name", "description", "nodes", "links", "input")
    document.storable()
    _check_description(document)
    name = document["name"].name()
    spots: dict[str, Spot] = {}
    nodes: dict[str, DraftNode] = {}
    blocks: dict[str, Block] = {}
    for spot in document["nodes"].items():
        node, block = _read_node(spot)
        if node.name in nodes:
            spot["id"].fail(f"{shown(node.name)} is the id of {spots[node.name].place} too")
        spots[node.name], nodes[node.name], blocks[node.name] = spot, node, block
    if not nodes:
        document["nodes"].fail("a graph needs at least one node")
    links: dict[DraftLink, Spot] = {}
    for spot in document["links"].items() if "links" in document.entries() else ():
        link = _read_link(spot, nodes, blocks)
        if link in links:
            spot.fail(f"the same link as {links[link].place}")
        links[link] = spot
    _check_shape(nodes, links, spots)
    linked = {link.sink for link in links}
    return Draft(name, tuple(nodes.values()), _as_read(links), _starts(document, nodes, linked, spots))


def _check_description(spot: Spot) -> None:
    if "description" in spot.entries():
        spot["description"].text()


def _read_node(spot: Spot) -> tuple[DraftNode, Block]:
    spot.only("id", "block", "description", "input_default", "constants")
    _check_description(spot)
    name = spot["id"].name()
    block_id = spot["block"].name()
    try:
        block = get_block(block_id)
    except UnknownBlock as error:
        cause = error.__cause__
        because = "" if cause is None or isinstance(cause, LookupError) else f" ({type(cause).__name__}: {cause})"
        spot["block"].fail(" ".join(f"{error}{because}".split()))
    values: dict[str, dict[str, Any]] = {}
    for part in ("input_default", "constants"):
        values[part] = spot[part].entries() if part in spot.entries() else {}
        for key in values[part]:
            if not accepts(block.inputs, key):
                spot[part].fail(f"block {block_id} has no input {shown(key)}: it has {_listed(block.inputs)}")
    return DraftNode(name, block_id, values["input_default"], values["constants"]), block


def _read_link(spot: Spot, nodes: dict[str, DraftNode], blocks: dict[str, Block]) -> DraftLink:
    spot.only("source", "output", "sink", "input", "is_static")
    for end in ("source", "sink"):
        if spot[end].name() not in nodes:
            spot[end].fail(f"there is no node {shown(spot[end].value)}")
    source, sink = spot["source"].name(), spot["sink"].name()
    output, name = spot["output"].name(), spot["input"].name()
    if not accepts(blocks[source].outputs, output):
        has = _listed(blocks[source].outputs)
        spot["output"].fail(f"block {nodes[source].block_id} has no output {shown(output)}: it has {has}")
    if not accepts(blocks[sink].inputs, name):
        has = _listed(blocks[sink].inputs)
        spot["input"].fail(f"block {nodes[sink].block_id} has no input {shown(name)}: it has {has}")
    if name in nodes[sink].constants:
        spot["input"].fail(f"node {shown(sink)} has a constant {shown(name)}, which no link can override")
    # Kept apart from the key: the same link with and without is_static would still be the same link.
    if "is_static" in spot.entries():
        spot["is_static"].boolean()
    return DraftLink(source, output, sink, name)


def _as_read(links: dict[DraftLink, Spot]) -> tuple[DraftLink, ...]:
    return tuple(link._replace(is_static=spot.entries().get("is_static", False)) for link, spot in links.items())


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "none"


def _check_shape(nodes: dict[str, DraftNode], links: dict[DraftLink, Spot], spots: dict[str, Spot]) -> None:
    edges: dict[str, list[str]] = {name: [] for name in nodes}
    for link in links:
        edges[link.source].append(link.sink)
    for cycle in cycles(edges):
        inside = set(cycle)
        place = spots[min(cycle, key=list(nodes).index)]
        around = shown(" -> ".join(cycle))
        if not any(link.sink in inside and link.source not in inside for link in links):
            place.fail(f"no link enters the cycle {around}: nothing could start it")
        if not any(link.source in inside and link.sink not in inside for link in links):
            place.fail(f"no link leaves the cycle {around}: nothing could come of it")
    for name, starved in stuck_inputs(list(nodes), ((link.source, link.sink, link.input) for link in links)).items():
        spots[name].fail(f"this node can never run: what is linked to its input {shown(starved)} waits for itself")


def _starts(
    document: Spot, nodes: dict[str, DraftNode], linked: set[str], spots: dict[str, Spot]
) -> dict[str, dict[str, Any]]:
    given = document["input"].entries() if "input" in document.entries() else {}
    taken: set[str] = set()
    starts: dict[str, dict[str, Any]] = {}
    for name, node in nodes.items():
        if name in linked:
            continue
        starts[name] = {}
        if node.block_id != INPUT_BLOCK:
            continue
        values = {**node.input_default, **node.constants}
        wanted = values.get("name", name)
        if not isinstance(wanted, str):
            spots[name].fail(f"the name of an input must be text, got {shown(wanted)}")
        if wanted in given:
            if "value" in node.constants:
                spots[name].fail('it has a constant "value", which "input" cannot override')
            taken.add(wanted)
            starts[name] = {"value": given[wanted]}
        elif "value" not in values:
            spots[name].fail(f'"input" has no {shown(wanted)} and the node no default "value"')
    for key in given:
        if key not in taken:
            document["input"].fail(f"no {INPUT_BLOCK} node takes {shown(key)}")
    return starts
