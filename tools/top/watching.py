"""The arenas of this user, looked at again and again: those that come, go, and come anew under the same name."""

from __future__ import annotations

import threading
from typing import NamedTuple

from shmcache.arena import list_arenas, survey
from shmcache.arena.view import View
from shmcache.errors import ArenaError, ArenaMissing
from tools.monitoring.figures import Figures, Point, Watch
from tools.monitoring.reader import Reader, Snapshot
from tools.monitoring.readiness import problems


class Look(NamedTuple):
    """What one look at an arena found. `problem` is why it cannot be looked at; the rest is empty then."""

    name: str
    snapshot: Snapshot | None
    figures: Figures | None
    points: tuple[Point, ...]
    problems: tuple[str, ...]
    problem: str = ""


class Arenas:
    """Watches over arenas, kept between looks. May be asked by several threads, one after the other."""

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._watches: dict[str, tuple[str, Watch]] = {}

    def look(self, name: str) -> Look:
        """Look at one arena."""
        with self._turn:
            return self._look(name)

    def look_at_all(self) -> list[Look]:
        """Look at all arenas of this user, by name."""
        names = list_arenas()
        with self._turn:
            for name in [each for each in self._watches if each not in names]:
                self._drop(name)
            return [self._look(name) for name in names]

    def close(self) -> None:
        """Let go of all."""
        with self._turn:
            for name in list(self._watches):
                self._drop(name)

    def _look(self, name: str) -> Look:
        try:
            snapshot, figures = self._watch(name).look()
        except (ArenaError, ValueError, IndexError) as error:
            self._drop(name)
            return Look(name, None, None, (), (), str(error))
        # Clients that go straight to the database use an arena for its work queue alone: nothing is ever to be drained.
        is_cached = bool(snapshot.counters["leaders"]) or any(ring.last_sequence for ring in snapshot.rings)
        wrong = (
            problems(snapshot, is_cached=is_cached)
            if snapshot.is_alive
            else ["dead: no process is attached that lives"]
        )
        if not snapshot.is_alive and any(ring.entries for ring in snapshot.rings):
            wrong.append("entries wait in it: the next start drains them, or the key d")
        return Look(name, snapshot, figures, tuple(self._watches[name][1].points()), tuple(wrong))

    def _watch(self, name: str) -> Watch:
        """Return the watch over what has this name now. Raises ArenaError."""
        try:
            view = View(name)
        except ArenaMissing:
            self._drop(name)
            raise
        arena_id = survey.header(view.memory).arena_id
        kept = self._watches.get(name)
        if kept is not None and kept[0] == arena_id:
            view.close()
            return kept[1]
        self._drop(name)
        watch = Watch(Reader(view))
        self._watches[name] = arena_id, watch
        return watch

    def _drop(self, name: str) -> None:
        kept = self._watches.pop(name, None)
        if kept is not None:
            kept[1].close()
