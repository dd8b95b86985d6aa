"""`shmcache inspect`: any arena can be looked at, and what cannot is one line."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcache.arena import Arena, Codec, SharedMapping, layout, unlink_segment
from shmcache.arena.transaction import Put
from shmcache.codec import encode
from shmcache.identifiers import derived_id, id_bytes
from shmcache.records import NodeDefinition
from tests.unit.arena_state import commit
from tests.unit.test_command_line import assert_one_line, shmcache

NODE = NodeDefinition(derived_id("node"), derived_id("graph"), "a node", "shmcache.constant", {}, {"value": 7}, (), ())


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"test-inspect-{os.getpid()}"
    yield chosen
    unlink_segment(chosen)


@pytest.fixture
def arena(name: str) -> Iterator[Arena]:
    with Arena.create(name, 4 << 20) as made:
        commit(made, Put(id_bytes(NODE.id), encode(NODE)), Put(uuid.UUID(int=5).bytes, b"no record at all"))
        yield made


def test_an_arena_of_executors_is_described_as_a_page_and_as_json(arena: Arena, tmp_path: Path) -> None:
    page = shmcache(tmp_path, "inspect", arena.name)
    assert (page.returncode, page.stderr) == (0, "")
    for said in (arena.arena_id, NODE.id, "NodeDefinition", "lock holders: none", f"│ {os.getpid()} │", "load locks"):
        assert said in page.stdout
    done = shmcache(tmp_path, "inspect", arena.name, "--json", "--top", "1")
    facts = json.loads(done.stdout)
    assert facts["occupancy"]["records"] == 2
    assert [record["kind"] for record in facts["largest_records"]] == ["NodeDefinition"]
    assert facts["processes"][0]["counts"]["commits"] == 1
    assert facts["rings"][0]["entries"] == 0
    assert len(facts["hottest_records"]) == 1


def test_one_record_is_printed_decoded_or_as_its_bytes(arena: Arena, tmp_path: Path) -> None:
    for as_json in ((), ("--json",)):
        record = json.loads(shmcache(tmp_path, "inspect", arena.name, "--key", NODE.id, *as_json).stdout)
        assert record["kind"] == "NodeDefinition"
        assert (record["key"], record["record"]["name"], record["record"]["constants"]) == (
            NODE.id, "a node", {"value": 7}
        )  # fmt: skip
    foreign = json.loads(shmcache(tmp_path, "inspect", arena.name, "--key", str(uuid.UUID(int=5))).stdout)
    assert bytes.fromhex(foreign["undecoded"]) == b"no record at all"
    missing = str(uuid.UUID(int=6))
    assert_one_line(shmcache(tmp_path, "inspect", arena.name, "--key", missing), arena.name, missing)
    assert_one_line(shmcache(tmp_path, "inspect", arena.name, "--key", "me"), "'me' is no key")


def test_a_mapping_is_shown_with_its_own_keys_and_values(name: str, tmp_path: Path) -> None:
    with SharedMapping.create(name, "4 MiB", pinned=True) as mapping:
        mapping["text"] = {"list": [1, b"\x01\x02", None]}
        mapping[12] = "a number"
        mapping[uuid.UUID(int=7)] = "a UUID"
        facts = json.loads(shmcache(tmp_path, "inspect", name, "--json").stdout)
        assert facts["header"]["of"] == "SharedMapping"
        assert {record["key"] for record in facts["hottest_records"]} == {"text", "12", str(uuid.UUID(int=7))}
        for key, value in (
            ("text", {"list": [1, "0102", None]}),
            ("12", "a number"),
            (str(uuid.UUID(int=7)), "a UUID"),
        ):
            assert json.loads(shmcache(tmp_path, "inspect", name, "--key", key).stdout)["value"] == value
        assert_one_line(shmcache(tmp_path, "inspect", name, "--key", "other"), "'other'")
        mapping.unlink()
    codec = Codec("upper", lambda value: value.upper().encode(), bytes.decode)
    with SharedMapping.create(name, "4 MiB", codec=codec) as mapping:
        mapping["text"] = "shout"
        shown = json.loads(shmcache(tmp_path, "inspect", name, "--key", "text").stdout)
        assert bytes.fromhex(shown["undecoded"]).endswith(b"SHOUT")


def test_a_stopped_holder_of_the_commit_lock_is_named_and_keeps_nobody_from_looking(
    arena: Arena, tmp_path: Path
) -> None:
    pid = os.fork()
    if not pid:
        with arena._critical:
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        facts = json.loads(shmcache(tmp_path, "inspect", arena.name, "--json").stdout)
    finally:
        os.kill(pid, signal.SIGCONT)
        assert os.waitpid(pid, 0)[1] == 0
    assert facts["lock_holders"] == [{"lock": "commit", "thread": pid, "pid": pid, "died": False, "waited_for": False}]
    assert facts["occupancy"]["records"] == 2


def test_arenas_are_listed_the_broken_ones_with_what_is_wrong(arena: Arena, tmp_path: Path) -> None:
    broken = f"{arena.name}-broken"
    path = Path("/dev/shm") / f"shmcache.{os.getuid()}.{broken}"
    path.touch(0o600)
    try:
        page = shmcache(tmp_path, "inspect")
        listed = {each["arena"]: each for each in json.loads(shmcache(tmp_path, "inspect", "--json").stdout)}
    finally:
        path.unlink()
    assert page.returncode == 0
    assert re.search(rf"│ {arena.name} +│", page.stdout)
    assert f"arena '{broken}' cannot be used: it is truncated: remove it\n" in page.stdout
    assert listed[arena.name]["records"] == 2
    assert listed[arena.name]["processes"] == 1
    assert "truncated" in listed[broken]["problem"]


def test_what_cannot_be_looked_at_is_one_line(arena: Arena, tmp_path: Path) -> None:
    path = Path("/dev/shm") / f"shmcache.{os.getuid()}.{arena.name}"
    assert_one_line(shmcache(tmp_path, "inspect", f"{arena.name}-nowhere"), "no arena named")
    assert_one_line(shmcache(tmp_path, "inspect", "a/b"), "a name is 1 to 64")
    with path.open("r+b") as file:
        for word, said in ((layout.LAYOUT_WORD, "another version"), (layout.MAGIC_WORD, "no shmcache arena")):
            file.seek(word * layout.WORD)
            file.write(b"\x01")
            file.flush()
            assert_one_line(shmcache(tmp_path, "inspect", arena.name), said)
    path.chmod(0o644)
    assert_one_line(shmcache(tmp_path, "inspect", arena.name, "--json"), "mode 644")
    bad_use = shmcache(tmp_path, "inspect", "--key", "x")
    assert bad_use.returncode == 2
    assert "--key needs the NAME" in bad_use.stderr
