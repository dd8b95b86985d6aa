"""What the nodes of the hosts' load run."""

from __future__ import annotations

import time

from shmcache.blocks import Block
from shmcache.blocks.block import Inputs, Outputs
from shmcache.session import prepared_arena


class Work(Block):
    """Takes 50 ms; yields which arena it ran in."""

    id = "tests.stress.hosts.blocks:Work"
    inputs = ("*",)
    outputs = ("arena",)

    def run(self, inputs: Inputs) -> Outputs:
        """Wait, then say where."""
        time.sleep(0.05)
        return [("arena", prepared_arena().arena_id)]
