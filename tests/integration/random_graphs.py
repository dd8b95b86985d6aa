"""Small graphs made at random, from a seed: repeated outputs, static and nested links, joins, cycles, prices."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from shmcache.blocks import Block, register
from shmcache.blocks.block import Cost, Inputs, Outputs
from shmcache.blocks.registry import known_blocks
from shmcache.graphs.draft import Draft, DraftLink, DraftNode, LoadedGraph, build

VALUES: list[Any] = [0, "", False, None, [], {}, 1.5, "text", [1, {"a": None}], {"a": [0, {"b": ""}]}, -(2**40)]


class _Yields(Block):
    """Yields what its constant `yields` says, then raises if `fails` says so; a place inside it may be linked."""

    inputs: ClassVar[tuple[str, ...]] = ("yields", "fails", "*")
    outputs: ClassVar[tuple[str, ...]] = ("*",)

    def run(self, inputs: Inputs) -> Outputs:
        """Yield them one by one, or return all of them at once."""
        values = [(name, value) for name, value in inputs["yields"]]
        if inputs.get("fails"):
            return self._and_fail(values)
        return values if len(values) % 2 else iter(values)

    @staticmethod
    def _and_fail(values: list[tuple[str, Any]]) -> Outputs:
        yield from values
        raise ValueError("as it was told to")


class PerRun(_Yields):
    """For 3 credits a run."""

    id = "tests.random.run"
    cost = Cost(3, "run")


class PerByte(_Yields):
    """For a credit a byte."""

    id = "tests.random.byte"
    cost = Cost(1, "byte")


class PerSecond(_Yields):
    """For 1000 credits a second, expected to take one."""

    id = "tests.random.second"
    cost = Cost(1_000, "second")

    def seconds(self, inputs: Inputs) -> float:
        """Return what it is expected to take."""
        return 1.0


BLOCKS = (PerRun, PerByte, PerSecond)
for _block in BLOCKS:
    if _block.id not in known_blocks():
        register(_block)


def random_graph(seed: int) -> LoadedGraph:
    """Return a graph of 2 to 6 nodes."""
    source = random.Random(seed)
    names = [f"n{number}" for number in range(source.randint(2, 6))]
    nodes: list[DraftNode] = []
    links: list[DraftLink] = []
    for place, name in enumerate(names):
        yields = [
            [source.choice("ab"), source.choice(VALUES)] for _ in range(source.choices([0, 1, 2, 4], [1, 6, 3, 1])[0])
        ]
        constants = {"yields": yields, "fails": source.random() < 0.05}
        defaults = {source.choice("xy"): source.choice(VALUES)} if source.random() < 0.3 else {}
        nodes.append(DraftNode(name, source.choice(BLOCKS).id, defaults, constants))
        if place:
            for _ in range(source.randint(1, 3)):
                earlier = source.choice(nodes[:place])
                made = [output for output, _ in earlier.constants["yields"]] * 4
                output = source.choice([*made, "a_#_a", "b_$_0", "a_#_a_$_1_@_b", "error"])
                pin = source.choice(["x", "y", "z_$_1", "z_#_k"])
                links.append(DraftLink(earlier.name, output, name, pin, source.random() < 0.2))
    if source.random() < 0.15:
        links.append(DraftLink(names[-1], "a", names[-1], "x"))
    linked = {link.sink for link in links}
    starts: dict[str, dict[str, Any]] = {node.name: {} for node in nodes if node.name not in linked}
    unique = {link[:4]: link for link in links}
    return build(Draft(f"random {seed}", tuple(nodes), tuple(unique.values()), starts), 0.0)
