"""What a chaos run says at its end: a table, or JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.chaos.run import Outcome

_MUST_BE_NONE = ("lost", "duplicated", "reordered", "overdrawn", "unbalanced", "not_ended", "left_behind", "grown")


def as_dict(outcome: Outcome, seed: int) -> dict[str, Any]:
    """Return what came of a run as one flat JSON object."""
    found = outcome.found._asdict()
    examples, stall = found.pop("examples"), outcome.found.stall
    longest = found.pop("longest_call_ms")
    del found["stall"]
    return {
        "passed": outcome.passed,
        "seed": seed,
        "seconds": outcome.seconds,
        "kills": outcome.kills,
        "restarts_of_the_supervisor": outcome.restarts,
        "faults": outcome.faults,
        "faults_that_found_nothing": outcome.missed,
        "skipped": outcome.skipped,
        **found,
        "left_behind": outcome.left_behind,
        "longest_stall_ms": stall.milliseconds,
        "longest_with_waiting_for_a_core_ms": longest,
        "before_that": outcome.before_stall,
        "grown": [str(each) for each in outcome.growth if each.is_too_much],
        "watched": [str(each) for each in outcome.growth],
        "examples": examples,
        "kept": outcome.kept,
    }


def print_outcome(outcome: Outcome, seed: int, as_json: bool) -> None:
    """Print what came of a run on standard output."""
    facts = as_dict(outcome, seed)
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    table = Table(title="shmcache chaos", show_header=False)
    for name, value in facts.items():
        shown = value
        if isinstance(value, dict):
            shown = "\n".join(f"{key}: {item}" for key, item in value.items()) or "none"
        elif isinstance(value, list):
            shown = "\n".join(map(str, value)) or "none"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            shown = f"{value:,}"
        style = "bold red" if name in _MUST_BE_NONE and value else None
        table.add_row(name.replace("_", " "), str(shown), style=style)
    Console().print(table)
