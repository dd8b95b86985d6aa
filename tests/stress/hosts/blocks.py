"""What the nodes of the hosts' load run."""

from __future__ import annotations

import os
import time

from shmcache.blocks import Block
from shmcache.blocks.block import Inputs, Outputs
from shmcache.session import prepared_arena

_SECONDS = float(os.environ.get("HOST_BLOCK", "0.05"))


class Work(Block):
    """Takes 50 ms, or what HOST_BLOCK says in seconds; yields which arena it ran in."""

    id = "tests.stress.hosts.blocks:Work"
    inputs = ("*",)
    outputs = ("arena",)

    def run(self, inputs: Inputs) -> Outputs:
        """Wait, then say where."""
        time.sleep(_SECONDS)
        return [("arena", prepared_arena().arena_id)]
