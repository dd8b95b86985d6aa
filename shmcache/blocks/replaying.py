"""The block that stands in for one that is not installed here."""

from __future__ import annotations

import hashlib
from typing import Any

from shmcache.blocks.block import Block, Inputs, Outputs
from shmcache.blocks.checks import list_of, object_of, text_of, value_of
from shmcache.nested_pins import put_together

REPLAY = "shmcache_replay"
"""The constant that says what is replayed."""


class ReplayBlock(Block):
    """Stands in for another block: yields one value for each of its outputs that is linked.

    The constant `shmcache_replay` describes it: `block`, the id of what it stands in for; `node` and `seed`, from which
    the values come, so that every run yields the same; `outputs`, the names of the linked outputs (nested ones
    included, `name_#_key`: their values come in one value of `name`). Every other input is not looked at."""

    id = "shmcache.replay_block"
    inputs = (REPLAY, "*")
    outputs = ("*",)

    def run(self, inputs: Inputs) -> Outputs:
        """Return the values."""
        told = object_of(self, inputs, REPLAY)
        seed = value_of(self, told, "seed")
        node = text_of(self, told, "node")
        names = list_of(self, {"outputs": told.get("outputs", [])}, "outputs")
        return list(put_together({name: _value(f"{seed} {node} {name}") for name in names}).items())


def _value(seed: str) -> Any:
    """Return text, a number, a truth value, nothing, a list or an object, as the seed has it."""
    digest = hashlib.sha256(seed.encode()).digest()
    text, number = digest[1:9].hex(), int.from_bytes(digest[1:4], "big")
    values = (text, number, number / 256, number % 2 == 0, None, [text, number], {"text": text})
    return values[digest[0] % len(values)]
