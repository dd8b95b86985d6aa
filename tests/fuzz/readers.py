"""The readers: what each is given, and what it may do with that. All else is a finding.

A reader returns, or raises one error of our own tree, or what its description says it raises for bytes that are
nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import msgpack
from hypothesis import strategies as st
from msgpack import UnpackException

from shmcache.arena import Entry, segment
from shmcache.arena.mapping_codec import decode_msgpack
from shmcache.codec import ExecutionPart, NodeGroup, PartialExecution, Record, decode, encode
from shmcache.config import Settings, load_settings
from shmcache.errors import SettingsError
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import derived_id, id_bytes
from shmcache.records import (
    Account,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    Link,
    NodeDefinition,
    NodeExecution,
)
from shmcache.writes import CHARGE_TYPES, WRITE_TYPES, Refresh
from syncer.charge_batch import Batch
from syncer.consumer import _guarded
from syncer.entries import read_entry
from syncer.sync_manager import _Batch
from tests.fuzz.inputs import json_bytes, msgpack_bytes
from tests.fuzz.segments import HEADERS, RINGS, attach, read_ring
from tools import accounts_commands, cli
from tools.dead_letters import shown_entry
from tools.plain import json_text

GRAPHS = Path(__file__).parents[1] / "graphs"


@dataclasses.dataclass(frozen=True)
class Reader:
    """Something that is given `inputs`; `may_raise` are the errors that it may answer with besides our own."""

    name: str
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    may_raise: tuple[type[Exception], ...] = ()


# Files


def _file(data: bytes) -> Path:
    path = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}.json"
    path.write_bytes(data)
    return path


_DOCUMENTS = {path.name: json.loads(path.read_text()) for path in (*GRAPHS.glob("*.json"), example_path())}
_NATIVE = [each for each in _DOCUMENTS.values() if "nodes" in each]
_WFFORMAT = [each for each in _DOCUMENTS.values() if "nodes" not in each]


def _run_line(line: tuple[list[str], bytes]) -> None:
    """Give `shmcache` a line in which FILE stands for a file; nothing that it might start is started."""
    arguments, content = line
    path = _file(content)
    said = io.StringIO()
    status: object = None

    def no_start(**given: Any) -> NoReturn:
        load_settings(**given)
        raise SettingsError("the line is right, and nothing is started here")

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(mock.patch.object(sys, "argv", ["shmcache", *_words(arguments, path)]))
        for module in (cli, accounts_commands):
            stack.enter_context(mock.patch.object(module, "command_settings", no_start))
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
    assert status in (0, 1, 2, None), status
    text = said.getvalue()
    assert "shmcache: unexpected" not in text, text
    assert "Traceback" not in text, text


def _words(arguments: list[str], path: Path) -> list[str]:
    return [each.replace("FILE", str(path)) for each in arguments]


_NAMES = st.text(st.characters(exclude_characters="\0"), max_size=70) | st.sampled_from(
    ["", ".", "..", "/", "FILE", "no-such-arena", "\udcff", "-", "--json"]
)
_LINES = st.tuples(
    st.one_of(
        st.tuples(st.just("inspect"), _NAMES).map(list),
        st.tuples(st.just("inspect"), _NAMES, st.just("--key"), _NAMES).map(list),
        st.tuples(st.just("run"), st.sampled_from(["FILE", "FILE/x", "/", "/dev/null", ""]) | _NAMES).map(list),
        st.tuples(st.just("run"), st.just("FILE"), st.just("--user"), _NAMES).map(list),
        st.tuples(st.just("supervise"), _NAMES).map(list),
        st.tuples(st.just("drain"), _NAMES).map(list),
        st.tuples(st.just("dead-letters"), st.sampled_from(["show", "replay", "list", "discard"]), _NAMES).map(list),
        st.tuples(st.just("accounts"), st.sampled_from(["show", "top-up", "ledger", "holds"]), _NAMES, _NAMES).map(
            list
        ),
        st.lists(_NAMES, max_size=3),
    ),
    json_bytes(_NATIVE) | st.binary(max_size=40),
).filter(lambda line: not {"chaos", "bench"} & {*line[0]})


# Records and entries

_IDS = [derived_id("fuzz", str(number)) for number in range(6)]
_NODE = NodeExecution(
    _IDS[0], _IDS[1], _IDS[2], "block", _IDS[3], ExecutionStatus.RUNNING, {"in": 1}, {"in": InputSource(_IDS[4], 0)},
    {"out": [1, None]}, 2, 1.5, None, None, None, {},
)  # fmt: skip
_RECORDS: list[Record] = [
    NodeDefinition(_IDS[0], _IDS[1], "name", "block", {}, {"c": 1}, (Link(_IDS[0], "a", _IDS[1], "b"),), ()),
    GraphExecution(_IDS[0], _IDS[1], _IDS[2], ExecutionStatus.QUEUED, {}, 1.5, None, None, {}),
    Account(_IDS[0], 100, 90, 3),
    _NODE,
    PartialExecution(_NODE, 2),
    ExecutionPart({"a": 1}, {"a": InputSource(_IDS[0], 1)}, {"b": [2]}),
    NodeGroup([_IDS[0]], _IDS[1]),
    Graph(_IDS[0], "name", (_IDS[1],), {_IDS[1]: {"x": 1}}),
]
_OF_TYPES = {"str": _IDS[1], "int": 3, "float": 1.5, "bool": False}
_ROWS = [
    [_OF_TYPES[hint.__forward_arg__.split(" |", maxsplit=1)[0]] for hint in row_type.__annotations__.values()]
    for row_type in (*WRITE_TYPES.values(), *CHARGE_TYPES.values())
]
_PAYLOADS = msgpack_bytes(_ROWS)


def _entries(kinds: int) -> st.SearchStrategy[list[Entry]]:
    one = st.builds(
        Entry, st.integers(1, 9), st.integers(0, kinds + 1), _PAYLOADS, st.sampled_from([True, True, False])
    )
    return st.lists(one, max_size=4).map(
        lambda made: [entry._replace(sequence=place) for place, entry in enumerate(made, 1)]
    )


def _read_write_batch(entries: list[Entry]) -> None:
    batch = _Batch(entries, 0)
    assert sorted(entry.sequence for entry, _ in (*batch.rows, *batch.broken)) == [each.sequence for each in entries]


def _read_charge_batch(entries: list[Entry]) -> None:
    batch = Batch(entries, 2)
    found = [item[0] for items in batch.partitions.values() for item in items]
    found += [entry.sequence for entry, _ in (*batch.refusals, *batch.broken)]
    refreshes = {each.sequence for each in entries if CHARGE_TYPES.get(each.kind) is Refresh} - set(found)
    assert sorted([*found, *refreshes]) == [each.sequence for each in entries], "each entry is in one place"
    broken = {entry.sequence for entry, _ in batch.broken}
    readable = [each for each in entries if each.sequence not in broken]
    assert batch.charges <= len(readable)
    assert all(isinstance(user, str) for user in batch.users)
    assert all(type(amount) is int for amount in batch.released.values())
    for opened in batch.opened:
        assert len(id_bytes(opened.node_exec_id) + id_bytes(opened.graph_exec_id)) == 32
        assert type(opened.owner_pid) is int
    if not readable:
        assert [*batch.released, *batch.opened, *batch.closed, *batch.marks] == []


def _show_letter(letter: tuple[str, int, bool, bytes]) -> None:
    ring, kind, intact, payload = letter
    json.loads(json_text(shown_entry(ring, kind, intact, payload)).encode())


# Settings

_TEXTS = (
    st.text(max_size=12)
    | st.from_regex(r"[0-9.]{1,4} ?(ms|s|min|h|MiB|B|TB)?", fullmatch=True)
    | st.sampled_from(
        ["inf", "nan", "1e400", "1e300 s", "9" * 400, "-1", "0", "auto", "..", "a\nb", "\0", "1" * 30 + " TB"]
    )
)
_SETTINGS = st.dictionaries(st.sampled_from([*Settings.model_fields]), _TEXTS, min_size=1, max_size=3)


def _load_settings(given: dict[str, str]) -> None:
    loaded = load_settings(**given)
    for name in ("sync_interval", "ring_wait", "lock_wait", "stopped_wait", "account_interval"):
        assert 0 < getattr(loaded, name) < math.inf, name
    assert loaded.arena_size == "auto" or 0 < loaded.arena_size < 2**63
    assert os.fspath(loaded.state_dir).count("\0") == 0
    segment.segment_path(loaded.arena)


READERS = [
    Reader("graph file", json_bytes(_NATIVE), lambda data: load_graph_file(_file(data))),
    Reader("WfFormat file", json_bytes(_WFFORMAT), lambda data: load_graph_file(_file(data), time_scale=0.5)),
    Reader("path of a graph file", st.text(max_size=300), load_graph_file),
    Reader("command line", _LINES, _run_line),
    Reader("settings", _SETTINGS, _load_settings),
    Reader("database address", st.text(max_size=60) | _TEXTS.map("postgresql://h/d?options={}".format), _guarded),
    Reader(
        "identifier", st.text(max_size=40) | st.uuids().map(str) | st.binary() | st.integers() | st.none(), id_bytes
    ),
    Reader("record", msgpack_bytes([msgpack.unpackb(encode(each)) for each in _RECORDS], *range(9)), decode),
    Reader("value of a mapping", msgpack_bytes(_ROWS), decode_msgpack, (ValueError, TypeError, UnpackException)),
    Reader(
        "entry",
        st.tuples(st.sampled_from(["write", "charge"]), st.integers(0, 7), _PAYLOADS),
        lambda entry: read_entry(*entry),
        (ValueError,),
    ),
    Reader("batch of the write ring", _entries(4), _read_write_batch),
    Reader("batch of the charge ring", _entries(6), _read_charge_batch),
    Reader(
        "dead letter",
        st.tuples(st.sampled_from(["write", "charge"]), st.integers(0, 7), st.booleans(), _PAYLOADS),
        _show_letter,
    ),
    Reader("header of a segment", HEADERS, attach),
    Reader("ring", RINGS, read_ring),
]
