"""A worker that dies in the middle of a write, for real: collected only where it is named."""

from __future__ import annotations

import os
import signal

from shmcache.arena import critical
from tests import kill_points
from tests.integration.charging import PER_RUN
from tests.stress.executors.conftest import Executor

_AFTER = 40
"""So many steps of commits, in that it is killed in the middle of one."""


def test_a_worker_is_killed_in_the_middle_of_a_write(executor: Executor) -> None:
    identifier, _ = executor.client.upsert_execution_input(PER_RUN, executor.run(), None)
    steps = 0

    def point(name: str) -> None:
        nonlocal steps
        steps += 1
        if steps > _AFTER and name == "committed":
            os.kill(os.getpid(), signal.SIGKILL)

    kill_points.arm(critical, point)
    while True:
        executor.journaling.append_output(identifier, steps)
        executor.do_anything()
