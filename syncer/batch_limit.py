"""How large the next batch may be: as large as a commit of about the wanted length allows, half as large after a
failure, in case its size was the reason. The first is a small one: a new leader soon makes room for those who wait for
it, and if leaders die in a row, each has brought something further."""

from __future__ import annotations

_LEAST_ENTRIES = 256
"""Slowness alone makes no batch smaller: below this a commit's fixed costs count for more than its rows."""


_FIRST_ENTRIES = 1_000


class BatchLimit:
    """Bounds of a batch in entries and in bytes, which shrink and grow together."""

    def __init__(self, most_entries: int, most_bytes: int, wanted_seconds: float) -> None:
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._wanted_seconds = wanted_seconds
        self.entries = min(most_entries, _FIRST_ENTRIES)

    @property
    def bytes(self) -> int:
        """The most bytes that a batch may gather before it ends (its last entry may go beyond)."""
        return max(1, self._most_bytes * self.entries // self._most_entries)

    def committed(self, entries: int, seconds: float) -> None:
        """Take note of a batch that took so long to commit."""
        if seconds > self._wanted_seconds:
            floor = min(self.entries, _LEAST_ENTRIES)
            self.entries = max(floor, int(self.entries * max(0.5, self._wanted_seconds / seconds)))
        elif seconds < self._wanted_seconds / 2 or entries < self.entries:
            self.entries = min(self._most_entries, self.entries * 2)

    def failed(self, entries: int) -> None:
        """Take note of a batch that could not be committed."""
        self.entries = max(1, min(self.entries, entries) // 2)
