"""`shmcache inspect`: what an arena holds, who uses it and who holds its locks, seen from outside, leaving no trace."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shmcache.arena import list_arenas, survey
from shmcache.arena.mapping import is_mapping
from shmcache.arena.mapping_codec import MSGPACK, decode_msgpack
from shmcache.arena.mapping_keys import MappingKeys, split_record
from shmcache.arena.view import View
from shmcache.codec import decode
from shmcache.errors import ArenaError, ArenaMissing, InvalidValue, NotFound
from shmcache.identifiers import id_text
from tools.plain import json_text

_SHOWN_BYTES = 64
_WIDTH = 160
"""Columns of what goes to a pipe or a file."""

_NO_AMOUNTS = frozenset({"lane", "pid", "thread", "version", "pid_namespace"})


def print_arenas(as_json: bool) -> None:
    """List this user's arenas, those that cannot be used with the reason."""
    found = [summary for summary in map(_summary, list_arenas()) if summary]
    if as_json:
        _print_json(found)
        return
    sound = [each for each in found if "problem" not in each]
    if sound or not found:
        _print_table("arenas of this user", sound)
    for each in found:
        if "problem" in each:
            sys.stdout.write(f"{each['problem']}\n")


def print_arena(name: str, top: int, as_json: bool) -> None:
    """Describe one arena. Raises ArenaMissing, ArenaUnusable."""
    with View(name) as view:
        facts = _facts(view, top)
    if as_json:
        _print_json(facts)
        return
    for title, fact in facts.items():
        heading = title.replace("_", " ")
        if isinstance(fact, dict):
            _print_table(
                heading, [{"what": key.replace("_", " "), "value": _shown(key, value)} for key, value in fact.items()]
            )
        else:
            _print_table(heading, fact)


def print_record(name: str, key: str, as_json: bool) -> None:
    """Print one record, decoded. Raises ArenaMissing, ArenaUnusable, NotFound."""
    with View(name) as view:
        mapped = is_mapping(survey.header(view.memory).identity)
        for candidate in _possible_keys(view, key, mapped):
            found = view.read(candidate)
            if found is not None:
                record = {
                    "key": _shown_key(view, candidate, mapped),
                    "version": found.version,
                    "bytes": len(found.record),
                    **_decoded(view, candidate, found.record, mapped),
                }
                break
        else:
            raise NotFound(
                f"record in arena {name!r} under", repr(key), f"shmcache inspect {name} shows some that it has"
            )
    if as_json:
        _print_json(record)
    else:
        sys.stdout.write(json_text(record, indent=2) + "\n")


def _summary(name: str) -> dict[str, Any] | None:
    try:
        with View(name) as view:
            occupancy = survey.occupancy(view.memory)
            return {
                "arena": name,
                "size": view.memory.layout.end,
                "of": "SharedMapping" if is_mapping(survey.header(view.memory).identity) else "executors",
                "processes": sum(lane.alive for lane in survey.lanes(view.memory)),
                "records": occupancy.records,
                "live_bytes": occupancy.live_bytes,
                "unsynced": sum(ring.entries for ring in survey.rings(view.memory)),
            }
    except ArenaMissing:
        return None  # removed since it was listed
    except ArenaError as error:
        return {"arena": name, "problem": str(error)}


def _facts(view: View, top: int) -> dict[str, Any]:
    memory = view.memory
    header = survey.header(memory)
    mapped = is_mapping(header.identity)
    occupancy = survey.occupancy(memory)
    return {
        "header": {
            "name": view.name,
            "of": "SharedMapping" if mapped else "executors",
            "arena_id": header.arena_id,
            "identity": header.identity.hex(),
            "size": header.size,
            "layout_hash": f"{header.layout_hash:016x}",
            "pid_namespace": header.pid_namespace,
        },
        "regions": _rows(survey.regions(memory)),
        "occupancy": {
            **occupancy._asdict(),
            "overhead": round(occupancy.live_bytes / occupancy.record_bytes, 3) if occupancy.record_bytes else None,
            "work_outstanding": survey.work_outstanding(memory),
        },
        "rings": _rows(survey.rings(memory)),
        "processes": _rows(survey.lanes(memory)),
        "lock_holders": _rows(survey.holders(memory)),
        "largest_records": _records(view, survey.largest(memory, top), mapped),
        "hottest_records": _records(view, survey.hottest(memory, top), mapped),
    }


def _records(view: View, facts: Iterable[survey.RecordFact], mapped: bool) -> list[dict[str, Any]]:
    shown = []
    for fact in facts:
        found = view.read(fact.key)
        kind = "" if mapped or found is None else _kind(found.record)
        shown.append({**fact._asdict(), "key": _shown_key(view, fact.key, mapped), **({"kind": kind} if kind else {})})
    return shown


def _kind(record: bytes) -> str:
    try:
        return type(decode(record)).__name__
    except InvalidValue:
        return "(no record of an executor)"


def _possible_keys(view: View, text: str, mapped: bool) -> list[bytes]:
    """Return what a key given on the command line may mean: of a mapping, text before a number or a UUID."""
    found = []
    if mapped:
        keys = MappingKeys(uuid.UUID(survey.header(view.memory).arena_id).bytes)
        found.append(keys.place(text).name)
        if text.removeprefix("-").isdecimal():
            found.append(keys.place(int(text)).name)
    try:
        found.append(uuid.UUID(text).bytes)
    except ValueError:
        if not mapped:
            raise InvalidValue(f"{text!r} is no key: the records of executors have UUIDs") from None
    return found


def _shown_key(view: View, key: bytes, mapped: bool) -> str:
    if mapped:
        found = view.read(key)
        split = found and split_record(key, found.record)
        if split:
            return str(split[0])
    return id_text(key)


def _decoded(view: View, key: bytes, record: bytes, mapped: bool) -> dict[str, Any]:
    """Return a record's value, or its first bytes where they are none of ours."""
    try:
        if not mapped:
            decoded = decode(record)
            return {"kind": type(decoded).__name__, "record": decoded._asdict()}
        split = split_record(key, record)
        if split and survey.header(view.memory).identity.endswith(MSGPACK.mark):
            return {"value": decode_msgpack(record[split[1] :])}
    except (InvalidValue, ValueError, TypeError):
        pass
    return {"undecoded": record[:_SHOWN_BYTES]}


def _rows(facts: Iterable[Any]) -> list[dict[str, Any]]:
    return [fact._asdict() for fact in facts]


def _print_json(value: Any) -> None:
    sys.stdout.write(json_text(value) + "\n")


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        sys.stdout.write(f"{title}: none\n")
        return
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for column in columns:
        numbers = all(isinstance(row.get(column, 0), int) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(column, row.get(column))) for column in columns))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def _shown(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return "yes"
    if isinstance(value, dict):
        return ", ".join(f"{amount:,} {what}" for what, amount in value.items())
    return f"{value:,}" if isinstance(value, int | float) and name not in _NO_AMOUNTS else str(value)
