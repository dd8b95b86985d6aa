"""What the doctor prints: each area with its checks, and under each that is not well what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tools.doctor.examination import Area
from tools.doctor.finding import Verdict

_STYLES = {
    Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "bold red", Verdict.SKIPPED: "dim",
}  # fmt: skip
_WIDTH = 160
_INDENT = " " * 10


def print_areas(areas: Sequence[Area], as_json: bool) -> bool:
    """Print what was found; return whether nothing failed."""
    verdicts = [each.verdict for area in areas for each in area.findings]
    failures, warnings = verdicts.count(Verdict.FAILURE), verdicts.count(Verdict.WARNING)
    if as_json:
        findings = [{"area": area.name, **each._asdict()} for area in areas for each in area.findings]
        sys.stdout.write(json.dumps({"failures": failures, "warnings": warnings, "findings": findings}) + "\n")
        return not failures
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for area in areas:
        console.print(Text(area.name, style="bold"))
        for each in area.findings:
            console.print(
                Text.assemble((f"  {each.verdict:<8}", _STYLES[each.verdict]), f"{each.check}: {each.found}"),
                soft_wrap=True,
            )
            if each.advice:
                console.print(Text(f"{_INDENT}to do: {each.advice}"), soft_wrap=True)
    console.print(Text(f"{failures} failures, {warnings} warnings"))
    return not failures
