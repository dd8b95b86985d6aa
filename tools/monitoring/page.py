"""What the status page shows, as JSON: a snapshot, its figures, the last minutes of them, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.monitoring.figures import Figures, Point
from tools.monitoring.reader import Snapshot


def as_json(snapshot: Snapshot, figures: Figures, points: Sequence[Point], problems: Sequence[str]) -> dict[str, Any]:
    """Return what the page asks for every other second."""
    return {
        "taken_at": snapshot.taken_at,
        "arena": snapshot.arena,
        "arena_id": snapshot.arena_id,
        "size": snapshot.size,
        "problems": list(problems),
        "figures": figures._asdict(),
        "fills": [fill._asdict() for fill in snapshot.fills],
        "records": snapshot.occupancy.records,
        "unsynced_records": snapshot.occupancy.records_dirty,
        "rings": [{**ring._asdict(), "fullness": ring.fullness} for ring in snapshot.rings],
        "counters": snapshot.counters,
        "batches": snapshot.histograms["write_batch_entries"].total,
        "credits": snapshot.credits._asdict(),
        "work_outstanding": snapshot.work_outstanding,
        "processes": [process._asdict() for process in snapshot.processes],
        "locks": [lock._asdict() for lock in snapshot.locks],
        "waits": snapshot.waits._asdict(),
        "history": {
            "at": [round(point.at, 1) for point in points],
            **{name: [_short(getattr(point, name)) for point in points] for name in Point._fields if name != "at"},
        },
    }


def _short(value: float | None) -> float | None:
    """Return a number as exactly as a plot can show it: hundreds of them travel every other second."""
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")
