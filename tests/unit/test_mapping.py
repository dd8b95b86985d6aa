"""SharedMapping: one dict or bounded cache for all processes of a host, however they were started."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from shmcache.arena import ABSENT, Arena, Codec, SharedMapping, list_arenas, unlink_segment
from shmcache.errors import ArenaError, ArenaExists, ArenaFull, ArenaMissing, ArenaUnusable, InvalidValue
from shmcache.frozen import thaw
from tests.unit.arena_state import die, run_in_child

SIZE = "4 MiB"
KEYS: list[Any] = ["a", "", "é\ud800", b"a", b"", 0, 1, -1, 255, -256, 2**200, uuid.UUID(int=7), "x" * 5000]


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"test-mapping-{os.getpid()}"
    yield chosen
    unlink_segment(chosen)


@pytest.fixture
def mapping(name: str) -> Iterator[SharedMapping]:
    with SharedMapping.create(name, SIZE, pinned=True) as made:
        yield made
        assert made._arena.check() == []


@pytest.fixture
def cache(name: str) -> Iterator[SharedMapping]:
    with SharedMapping.create(name, SIZE) as made:
        yield made
        assert made._arena.check() == []


def test_it_is_a_dict_with_keys_of_four_types(mapping: SharedMapping) -> None:
    model = {key: [number, {"key": repr(key)}] for number, key in enumerate(KEYS)}
    mapping.update(model)
    assert mapping == model
    assert dict(mapping.items()) == model
    assert set(mapping) == set(model)
    assert len(mapping) == len(mapping.values()) == len(model)
    for key, value in model.items():
        assert key in mapping
        assert mapping[key] == mapping.get(key) == value
    assert "1" not in mapping
    assert mapping[True] == model[1]
    assert mapping.pop("a") == model.pop("a")
    del mapping[b"a"], model[b"a"]
    assert mapping.popitem()[0] in model
    assert len(mapping) == len(model) - 1
    mapping.clear()
    assert not mapping
    assert list(mapping) == []


def test_keys_that_are_not_there_are_answered_as_by_a_dict(mapping: SharedMapping) -> None:
    for missing in KEYS:
        assert mapping.get(missing) is None
        assert mapping.get(missing, 5) == mapping.pop(missing, 5) == 5
        assert not mapping.delete(missing)
        for action in (mapping.__getitem__, mapping.__delitem__, mapping.pop):
            with pytest.raises(KeyError):
                action(missing)
    with pytest.raises(KeyError):
        mapping.popitem()


@pytest.mark.parametrize("bad", [None, 1.5, ("a",), frozenset()])
def test_what_cannot_be_a_key_is_said_so(mapping: SharedMapping, bad: Any) -> None:
    for action in (mapping.get, mapping.__getitem__, mapping.delete, mapping.__contains__):
        with pytest.raises(TypeError, match="a key is str, bytes, int or"):
            action(bad)
    with pytest.raises(TypeError):
        mapping[bad] = 1


@pytest.mark.parametrize("bad", [object(), {1, 2}, 2**70, "\ud800", 1j, lambda: None])
def test_a_value_that_cannot_be_kept_is_refused_and_changes_nothing(mapping: SharedMapping, bad: Any) -> None:
    mapping["k"] = "old"
    with pytest.raises(InvalidValue, match="msgpack does not take"):
        mapping["k"] = {"deep": [bad]}
    assert mapping["k"] == "old"


def test_what_is_handed_out_cannot_be_changed_and_is_handed_out_again(mapping: SharedMapping) -> None:
    given = {"list": [1, {"deep": True}], (1, "tuple"): ()}
    mapping["k"] = given
    got = mapping["k"]
    assert got == {"list": [1, {"deep": True}], (1, "tuple"): []}
    assert mapping["k"] is got
    given["list"].clear()  # type: ignore[attr-defined]  # what the putter still holds is its own
    assert mapping["k"]["list"] == [1, {"deep": True}]
    for value, change in ((got, "clear"), (got["list"], "sort"), (got["list"][1], "popitem")):
        with pytest.raises(TypeError, match="cannot be changed"):
            getattr(value, change)()
    thaw(got)["list"].append(2)
    assert mapping["k"] == got


def test_every_process_sees_what_another_puts_deletes_or_takes(mapping: SharedMapping) -> None:
    other = SharedMapping.attach(mapping.name)
    assert other.pinned
    mapping["k"] = 1
    assert (other["k"], other["k"], other.statistics().hits) == (1, 1, 1)
    mapping["k"] = 2
    assert other["k"] == 2
    assert other.pop("k") == 2
    assert mapping.get("k") is None
    mapping["k"] = 3
    assert other["k"] == 3
    assert mapping.delete("k")
    assert "k" not in other
    other.close()


def test_compare_and_set_goes_by_the_value_or_by_the_version(mapping: SharedMapping) -> None:
    assert not mapping.compare_and_set("k", 1, expected=0)
    assert not mapping.compare_and_set("k", 1, version=5)
    assert mapping.compare_and_set("k", None, expected=ABSENT)
    assert not mapping.compare_and_set("k", 1, expected=ABSENT)
    assert mapping.compare_and_set("k", 1, expected=None)  # a value like others
    with pytest.raises(TypeError, match="either an expected value or a version"):
        mapping.compare_and_set("k", 1)
    versioned = mapping.get_versioned("k")
    assert versioned is not None
    assert versioned.value == 1
    mapping["k"] = 1
    assert not mapping.compare_and_set("k", 2, version=versioned.version)
    versioned = mapping.get_versioned("k")
    assert versioned is not None
    assert mapping.compare_and_set("k", 2, version=versioned.version)
    assert mapping.compare_and_set("k", ABSENT, expected=2)
    assert mapping.get_versioned("k") is None
    assert mapping.compare_and_set("k", 3, version=0)
    assert mapping["k"] == 3


def _add(mapping: SharedMapping, key: str, times: int) -> None:
    for _ in range(times):
        while True:
            before = mapping.setdefault(key, 0)
            if mapping.compare_and_set(key, before + 1, expected=before):
                break


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_gets_it_as_an_argument_however_it_was_started(mapping: SharedMapping, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    children = [context.Process(target=_add, args=(mapping, "sum", 150)) for _ in range(2)]
    for child in children:
        child.start()
    _add(mapping, "sum", 150)
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert mapping["sum"] == 450
    assert mapping.name in list_arenas()


def test_threads_share_it_and_lose_nothing(mapping: SharedMapping) -> None:
    other = SharedMapping.attach(mapping.name, decoded_limit=3)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(300):
                key = f"{number}-{step % 7}"
                other[key] = step
                assert other[key] == step
            _add(other, "sum", 100)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert mapping["sum"] == 400
    assert other.statistics().decoded <= 3
    other.close()


def test_of_many_that_take_a_key_one_gets_it(mapping: SharedMapping) -> None:
    for number in range(300):
        mapping[number] = number

    def take_all() -> None:
        taken = [value for number in range(300) if (value := mapping.pop(number, None)) is not None]
        mapping[f"taken by {os.getpid()}"] = taken

    children = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                take_all()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert sorted(number for taken in mapping.values() for number in taken) == list(range(300))


def test_a_child_reports_its_own_reads_and_not_its_parents(mapping: SharedMapping) -> None:
    mapping["k"] = 1
    for _ in range(10):
        mapping.get("k")  # the first of each process is a read, the others are hits

    def child() -> None:
        for _ in range(5):
            mapping.get("k")
        mapping.get("missing")
        mapping.report()

    assert run_in_child(child) == 0
    mapping.report()
    mapping.report()
    totals = mapping._arena.counter_totals()
    assert (totals["decoded_hits"], totals["reads"], totals["misses"]) == (13, 2, 1)


def test_a_mapping_that_is_pickled_comes_back_as_itself_and_another_of_its_name_does_not(name: str) -> None:
    with SharedMapping.create(name, SIZE) as first:
        data = pickle.dumps(first)
        assert pickle.loads(data) is first
        assert copy.copy(first) is first
        first.unlink()
    with pytest.raises(ArenaMissing):
        pickle.loads(data)
    with SharedMapping.create(name, SIZE), pytest.raises(ArenaMissing):
        pickle.loads(data)


def test_a_cache_lets_old_keys_go_and_everybody_sees_them_gone(cache: SharedMapping) -> None:
    other = SharedMapping.attach(cache.name)
    cache["old"] = "value"
    assert other["old"] == "value"
    for number in range(500):
        cache[number] = bytes(10_000)
    assert other.get("old") is None
    assert "old" not in cache
    assert cache[499] == bytes(10_000)
    statistics = cache.statistics()
    assert statistics.evicted > 100
    assert statistics.keys == len(cache) == len(dict(cache.items())) < 501
    assert statistics.live_bytes > 1 << 20
    other.close()


def test_what_is_served_decoded_is_spared_by_eviction_as_well(cache: SharedMapping) -> None:
    cache["hot"] = "served decoded"
    for number in range(20_000):
        cache[number] = bytes(1000)
        assert cache.get(number) is not None
        assert cache["hot"] == "served decoded"
    statistics = cache.statistics()
    assert statistics.evicted > 5000
    assert statistics.hits >= 19_000


def test_no_content_of_a_record_is_taken_for_the_version_of_an_entry_that_lay_there(name: str) -> None:
    with SharedMapping.create(name, "8 MiB", decoded_limit=100_000) as cache:
        for number in range(30_000):
            cache[number] = None
        kept = {number for number in range(30_000) if number in cache and cache[number] is None}
        entry, version, key = min((*cache._decoded[number][:2], number) for number in kept)
        for number in kept:
            del cache[number]
        content = version.to_bytes(8, "little") * 2000
        words = cache._arena.version_words()
        for number in range(2000):
            cache._arena.put(number.to_bytes(16, "big"), content)
            if words[entry] == version:
                break
        assert cache.get(key, "gone") == "gone"


def test_a_pinned_mapping_keeps_all_refuses_more_and_takes_again_what_there_is_room_for(mapping: SharedMapping) -> None:
    values = ((number, number.to_bytes(2, "big") * 5000) for number in range(1000))
    with pytest.raises(ArenaFull, match="no key leaves a pinned mapping by itself: delete some") as caught:
        mapping.update(values)
    assert caught.value.needed > 10_000
    number = len(mapping)
    assert number > 100
    for each in range(number):
        assert mapping[each] == each.to_bytes(2, "big") * 5000
    with pytest.raises(ArenaFull):
        mapping[0] = bytes(1 << 20)
    assert mapping[0] == bytes(10_000)
    for each in range(20):
        del mapping[each]
    mapping["again"] = bytes(100_000)
    assert mapping["again"] == bytes(100_000)


def test_a_mapping_outlives_a_killed_process_and_so_does_what_it_put(mapping: SharedMapping) -> None:
    def put_and_die() -> None:
        mapping["mine"] = 1
        with mapping._arena._critical:
            die()

    assert run_in_child(put_and_die) == -9
    assert mapping["mine"] == 1
    mapping["mine"] = 2


def test_values_of_a_codec_that_is_not_frozen_are_decoded_anew_at_each_get(name: str) -> None:
    codec = Codec("pickle", pickle.dumps, pickle.loads)
    with SharedMapping.create(name, SIZE, codec=codec) as mapping:
        mapping["k"] = {"set": {1, 2}}
        mapping["k"]["set"].add(3)
        assert mapping["k"] == mapping.setdefault("k") == {"set": {1, 2}}
        assert mapping.statistics().decoded == 0
        assert mapping.compare_and_set("k", 5, expected={"set": {1, 2}})
        with pytest.raises(ArenaUnusable, match="another codec than 'msgpack'"):
            SharedMapping.attach(name)
        with SharedMapping.attach(name, codec=codec) as other:
            assert other["k"] == 5


def test_an_arena_that_is_no_mapping_is_left_alone(name: str) -> None:
    with Arena.create(name, 4 << 20):
        with pytest.raises(ArenaUnusable, match="no SharedMapping"):
            SharedMapping.attach(name)
        with pytest.raises(ArenaExists):
            SharedMapping.create(name, SIZE)
    with pytest.raises(ValueError, match="'lots' is no size"):
        SharedMapping.create(name, "lots")


def test_a_record_that_is_another_keys_or_nobodys_is_not_taken_for_the_keys_own(mapping: SharedMapping) -> None:
    from shmcache.arena.transaction import Put
    from tests.unit.arena_state import commit

    place = mapping._keys.place("mine")
    for foreign in (b"", b"s", b"s\0\0\0\x01", b"s\0\0\0\x01\xffx", mapping._keys.place("other").head + b"\x01", b"zz"):
        commit(mapping._arena, Put(place.name, foreign))
        assert mapping.get("mine") is None
        assert "mine" not in mapping
        assert not mapping.delete("mine")
        assert mapping.pop("mine", 7) == 7
        assert list(mapping.items()) in ([], [("other", 1)])
    assert mapping.setdefault("mine", 3) == 3
    commit(mapping._arena, Put(place.name, place.head + b"\xc1"))
    with pytest.raises(InvalidValue, match="nothing that msgpack made"):
        mapping.get("mine")


def test_a_closed_mapping_says_so_and_closes_twice(name: str) -> None:
    mapping = SharedMapping.create(name, SIZE)
    mapping["k"] = 1
    assert mapping["k"] == 1
    mapping.close()
    mapping.close()
    assert "closed" in repr(mapping)
    for action in (mapping.get, mapping.__getitem__, mapping.delete, mapping.__contains__, mapping.setdefault):
        with pytest.raises(ArenaError, match="was closed"):
            action("k")
    for look in (mapping.clear, mapping.statistics, mapping.popitem, mapping.__len__, lambda: list(mapping.values())):
        with pytest.raises(ArenaError, match="was closed"):
            look()
    with SharedMapping.attach(name) as again:
        assert again["k"] == 1
