"""Records, identifiers, frozen values and their encoding."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache.arena.mapping_codec import encode_msgpack
from shmcache.codec import ExecutionPart, NodeGroup, PartialExecution, Record, decode, encode, json_text, pack
from shmcache.errors import InvalidValue
from shmcache.frozen import FrozenDict, FrozenList, freeze, thaw
from shmcache.identifiers import derived_id, id_bytes, id_text, new_id
from shmcache.records import (
    ALLOWED_FROM,
    Account,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    Link,
    NodeDefinition,
    NodeExecution,
    may_move,
)

S = ExecutionStatus
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def execution(inputs: Any, outputs: Any) -> NodeExecution:
    return NodeExecution(
        id=new_id(),
        graph_exec_id=new_id(),
        node_id=new_id(),
        block_id="block",
        user_id=new_id(),
        status=S.RUNNING,
        inputs=inputs,
        sources={"a": InputSource(new_id(), 3)},
        outputs=outputs,
        output_count=2,
        created_at=1.5,
        queued_at=2.25,
        started_at=None,
        ended_at=None,
        stats={"cost": 1},
    )


@given(JSON, JSON)
def test_a_node_execution_survives_its_encoding(one: Any, other: Any) -> None:
    record = execution({"pin": one}, {"out": [other, one]})
    assert decode(encode(record)) == record
    assert decode(encode(PartialExecution(record, 4))) == PartialExecution(record, 4)


LINK = Link(new_id(), "out", new_id(), "in", True)


@pytest.mark.parametrize(
    "record",
    [
        Graph(new_id(), "name", [new_id()], {new_id(): {"value": 1}}),
        NodeDefinition(new_id(), new_id(), "name", "block", {"a": 1}, {"b": [2]}, (LINK,), (LINK, LINK)),
        GraphExecution(new_id(), new_id(), new_id(), S.QUEUED, {}, 1.0, None, 2.0, {}),
        Account(new_id(), 100, 50, 7),
        NodeGroup([new_id()], None),
        ExecutionPart({"a": 1}, {"a": InputSource(new_id(), 0)}, {"out": [None]}),
    ],
    ids=lambda record: type(record).__name__,
)
def test_every_record_survives_its_encoding_with_its_types(record: Record) -> None:
    found = decode(encode(record))
    assert found == record
    assert type(found) is type(record)
    if isinstance(found, NodeDefinition):
        assert all(isinstance(link, Link) for link in (*found.input_links, *found.output_links))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    try:
        decode(data)
    except InvalidValue:
        return


@pytest.mark.parametrize("value", [object(), 2**64, float("nan"), b"x", "\ud800", {1, 2}])
def test_what_cannot_be_kept_is_an_invalid_value(value: Any) -> None:
    with pytest.raises(InvalidValue):
        encode(execution({"pin": value}, {})) and json_text(value)


@given(JSON)
def test_frozen_values_are_equal_and_refuse_every_change(value: Any) -> None:
    frozen = freeze(value)
    assert frozen == value
    assert json.loads(json.dumps(frozen)) == value
    assert thaw(frozen) == value
    assert copy.deepcopy(frozen) == value
    assert pickle.loads(pickle.dumps(frozen)) == value
    if isinstance(frozen, dict):
        with pytest.raises(TypeError):
            frozen["new"] = 1
        with pytest.raises(TypeError):
            frozen |= {"new": 1}
    if isinstance(frozen, list):
        with pytest.raises(TypeError):
            frozen.append(1)
        with pytest.raises(TypeError):
            frozen += [1]


def test_no_changing_method_of_dict_and_list_is_left_out() -> None:
    bases: list[tuple[type[Any], type[Any]]] = [(FrozenDict, dict), (FrozenList, list)]
    for kind, base in bases:
        reading = {"copy", "count", "fromkeys", "get", "index", "items", "keys", "values"}
        for name in dir(base):
            if name.startswith("__") and name not in {"__setitem__", "__delitem__", "__ior__", "__iadd__", "__imul__"}:
                continue
            if name not in reading:
                assert getattr(kind, name) is not getattr(base, name), name


def test_a_thawed_copy_shares_nothing_with_the_record() -> None:
    frozen = freeze({"list": [{"deep": [1]}]})
    plain = thaw(frozen)
    plain["list"][0]["deep"].append(2)
    assert frozen == {"list": [{"deep": [1]}]}


def test_identifiers_are_uuids_that_grow_with_time() -> None:
    made = [new_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(id_text(id_bytes(each)) == each for each in made)
    assert all(each[14] == "7" for each in made)
    assert [each[:13] for each in made] == sorted(each[:13] for each in made)


def test_a_derived_identifier_depends_on_every_part_and_on_nothing_else() -> None:
    assert derived_id("a", "b") == derived_id("a", "b")
    assert len({derived_id("a", "b"), derived_id("ab"), derived_id("a", "b", ""), derived_id("b", "a")}) == 4


@pytest.mark.parametrize("text", ["", "no", "0" * 31, "0" * 33, 7, None, "g" * 32])
def test_what_is_no_uuid_is_refused(text: Any) -> None:
    with pytest.raises(InvalidValue):
        id_bytes(text)


def test_the_table_of_moves_is_the_one_that_executors_rely_on() -> None:
    allowed = {
        S.INCOMPLETE: set(),
        S.QUEUED: {S.INCOMPLETE, S.TERMINATED, S.REVIEW},
        S.RUNNING: {S.INCOMPLETE, S.QUEUED, S.TERMINATED, S.REVIEW},
        S.COMPLETED: {S.RUNNING},
        S.FAILED: {S.INCOMPLETE, S.QUEUED, S.RUNNING, S.REVIEW},
        S.TERMINATED: {S.INCOMPLETE, S.QUEUED, S.RUNNING, S.REVIEW},
        S.REVIEW: {S.RUNNING},
    }
    assert {target: set(sources) for target, sources in ALLOWED_FROM.items()} == allowed
    assert not any(may_move(final, target) for final in (S.COMPLETED, S.FAILED) for target in S)


@pytest.mark.parametrize("pack_one", [pack, encode_msgpack])
def test_what_a_thread_packs_while_another_is_interrupted_in_the_middle_is_not_mixed_with_it(
    pack_one: Callable[[tuple[Any, ...]], bytes],
) -> None:
    class Interrupted(dict[str, int]):
        def items(self) -> Any:  # as the garbage collector may, let another thread run
            other = threading.Thread(target=lambda: packed.append(pack_one(("other", 2))))
            other.start()
            other.join()
            return super().items()

    packed: list[bytes] = []
    packed.append(pack_one(("one", Interrupted(a=1))))
    assert packed == [msgpack.packb(("other", 2)), msgpack.packb(("one", {"a": 1}))]
