"""What a supervisor says on SIGUSR1: one JSON object on one line of standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from shmcache.arena import survey
from shmcache.arena.view import View
from shmcache.errors import ArenaError
from tools.processes import Processes


def dump_state(arena_name: str, processes: Processes, began: float, facts: dict[str, Any]) -> None:
    """Write it, in one piece. Takes no lock, so that it works when a lock is what is wrong.

    `began` is when the supervisor did (monotonic), `facts` what it has to say beside that."""
    now = time.monotonic()
    state: dict[str, Any] = {
        "event": "state",
        "arena": arena_name,
        "pid": os.getpid(),
        "seconds": round(now - began, 1),
        **facts,
        "children": [
            {
                "pid": pid,
                "role": child.role.name,
                "seconds": round(now - child.started, 1),
                "up": child.up is not None,
                "leaving": child.asked_to_stop is not None,
                "stopped": child.stopped is not None,
            }
            for pid, child in processes.children()
        ],
        "restarts": processes.restarts,
    }
    try:
        with View(arena_name) as view:
            memory = view.memory
            state |= {
                "processes": [each._asdict() for each in survey.lanes(memory)],
                "rings": [each._asdict() for each in survey.rings(memory)],
                "occupancy": survey.occupancy(memory)._asdict(),
                "work_outstanding": survey.work_outstanding(memory),
                "lock_holders": [each._asdict() for each in survey.holders(memory)],
            }
    except ArenaError as error:
        state["problem"] = str(error)
    sys.stderr.write(json.dumps(state) + "\n")
    sys.stderr.flush()
