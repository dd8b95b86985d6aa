"""`shmcache dead-letters`: what the database refused, looked at, tried again, thrown away."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shmcache.config import Settings
from shmcache.database.dead_letters import DeadLetter, delete_dead_letters, list_dead_letters, load_dead_letter
from shmcache.errors import ShmcacheError
from shmcache.writes import ChargeKind, WriteKind
from syncer.entries import CHARGE_RING, read_entry
from syncer.replay import Replayed, replay
from tools.database import open_database
from tools.plain import json_text

_REPLAY_BATCH = 5_000
_SHOWN_BYTES = 1024
_BYTES_A_LINE = 16


class NoSuchDeadLetter(ShmcacheError):
    """No dead letter has this number."""

    def __init__(self, letter_id: int) -> None:
        super().__init__(f"no dead letter {letter_id}: `shmcache dead-letters list` shows those that there are")
        self.letter_id = letter_id


def print_list(settings: Settings, ring: str | None, limit: int, as_json: bool) -> None:
    """Print the oldest dead letters: a table, or a JSON array."""
    with open_database(settings) as connection:
        letters = list_dead_letters(connection, ring=ring, limit=limit + 1)
    more, letters = len(letters) > limit, letters[:limit]
    if as_json:
        _print_json([_as_json(letter) for letter in letters])
        return
    if not letters:
        _say("no dead letters")
        return
    table = Table(title="dead letters")
    for name in ("id", "ring", "sequence", "kind", "bytes", "put aside", "tries", "SQLSTATE", "error"):
        table.add_column(name, justify="right" if name in ("id", "sequence", "bytes", "tries") else "left",
                         overflow="fold")  # fmt: skip
    for letter in letters:
        table.add_row(*(Text(str(each)) for each in (
            letter.id, letter.ring, letter.sequence, _kind(letter), f"{letter.payload_bytes:,}",
            f"{letter.put_aside_at:%Y-%m-%d %H:%M:%S}", letter.tries, letter.sqlstate or "-",
            letter.error.split("\n", maxsplit=1)[0],
        )))  # fmt: skip
    Console().print(table)
    if more:
        _say(f"and more: --limit shows more than {limit}")


def print_one(settings: Settings, letter_id: int, as_json: bool) -> None:
    """Print all of a dead letter, its entry decoded or, where that cannot be done, as bytes. Raises
    NoSuchDeadLetter."""
    with open_database(settings) as connection:
        found = load_dead_letter(connection, letter_id)
    if found is None:
        raise NoSuchDeadLetter(letter_id)
    letter, payload = found
    fields, reason = _fields(letter.ring, letter.kind, letter.intact, payload)
    if as_json:
        _print_json({**_as_json(letter), **shown_entry(letter.ring, letter.kind, letter.intact, payload)})
        return
    table = Table(title=f"dead letter {letter.id}", show_header=False)
    for name, value in _as_json(letter).items():
        table.add_row(name.replace("_", " "), Text(str(value)))
    for name, value in (fields or {}).items():
        table.add_row(Text(f"entry: {name}"), Text(str(value)))
    Console().print(table)
    if fields is None:
        _say(f"the entry cannot be read ({reason}); its bytes:")
        for line in _hexdump(payload[:_SHOWN_BYTES]):
            _say(line)
        if len(payload) > _SHOWN_BYTES:
            _say(f"and {len(payload) - _SHOWN_BYTES:,} more: --json prints all")


def replay_letters(settings: Settings, letter_ids: Sequence[int], as_json: bool) -> bool:
    """Try dead letters again, all of them if none is named; print what came of it; return whether all were written."""
    total = Replayed([], {}, [])
    with open_database(settings) as connection:
        for batch in _batches(connection, letter_ids):
            done = replay(connection, batch)
            total.written.extend(done.written)
            total.refused.update(done.refused)
            total.missing.extend(done.missing)
    if as_json:
        _print_json(
            {"written": total.written, "refused": {str(key): why for key, why in total.refused.items()},
             "missing": total.missing}
        )  # fmt: skip
    else:
        for letter_id, why in total.refused.items():
            _say(f"{letter_id}: refused again: {why}")
        for letter_id in total.missing:
            _say(f"{letter_id}: not there (replayed or discarded already?)")
        _say(f"{len(total.written):,} written, {len(total.refused):,} refused, {len(total.missing):,} not there")
    return not total.refused and not total.missing


def discard_letters(settings: Settings, letter_ids: Sequence[int], as_json: bool) -> bool:
    """Delete dead letters, all of them if none is named; say how many; return whether all that were named were
    there."""
    gone: list[int] = []
    with open_database(settings) as connection:
        for batch in _batches(connection, letter_ids):
            gone += delete_dead_letters(connection, batch)
    missing = sorted({*letter_ids} - {*gone})
    if as_json:
        _print_json({"discarded": sorted(gone), "missing": missing})
    else:
        for letter_id in missing:
            _say(f"{letter_id}: not there (replayed or discarded already?)")
        _say(f"{len(gone):,} discarded, {len(missing):,} not there")
    return not missing


def _batches(connection: psycopg.Connection[Any], letter_ids: Sequence[int]) -> Iterator[list[int]]:
    """Yield the ids given, or those of all letters that there are, some thousand at a time.

    Letters of all arenas come oldest first: parents before children."""
    for begin in range(0, len(letter_ids), _REPLAY_BATCH):
        yield list(letter_ids[begin : begin + _REPLAY_BATCH])
    last = 0
    while not letter_ids:
        letters = list_dead_letters(connection, after=last, limit=_REPLAY_BATCH)
        if not letters:
            return
        yield [letter.id for letter in letters]
        last = letters[-1].id


def _kind(letter: DeadLetter) -> str:
    kinds = {each.value: each.name for each in (ChargeKind if letter.ring == CHARGE_RING else WriteKind)}
    return kinds.get(letter.kind, f"({letter.kind})") if letter.intact else f"damaged ({letter.kind})"


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    times = {name: getattr(letter, name).isoformat() for name in ("put_aside_at", "last_tried_at")}
    return {**letter._asdict(), "kind": _kind(letter), **times}


def shown_entry(ring: str, kind: int, intact: bool, payload: bytes) -> dict[str, Any]:
    """Return what is shown of an entry as JSON: its fields or, where it cannot be read, why, and its bytes."""
    fields, reason = _fields(ring, kind, intact, payload)
    if fields is None:
        return {"entry": None, "undecodable": reason, "payload_hex": payload.hex()}
    return {"entry": fields}


def _fields(ring: str, kind: int, intact: bool, payload: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return the fields of an entry, or None and why there are none."""
    if not intact:
        return None, "its checksum did not match"
    try:
        return read_entry(ring, kind, payload)._asdict(), ""
    except ValueError as error:
        return None, str(error)


def _hexdump(data: bytes) -> Iterator[str]:
    for begin in range(0, len(data), _BYTES_A_LINE):
        line = data[begin : begin + _BYTES_A_LINE]
        text = "".join(chr(each) if 32 <= each < 127 else "." for each in line)
        yield f"{begin:08x}  {line.hex(' '):<{3 * _BYTES_A_LINE}} {text}"


def _print_json(value: Any) -> None:
    sys.stdout.write(json_text(value) + "\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
