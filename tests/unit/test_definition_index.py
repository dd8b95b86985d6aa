"""The index of the definitions that an arena has: what is kept, what is not, and what deaths and damage leave."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from shmcache import definition_index
from shmcache.arena import Arena, Transaction
from shmcache.arena.layout import LOCATION, OFFSET_SHIFT
from shmcache.arena.transaction import Delete, Put
from shmcache.codec import decode, encode
from shmcache.database.queries import Definition
from shmcache.definition_index import DefinitionIndex
from shmcache.identifiers import derived_id, id_bytes, new_id
from shmcache.records import Graph, NodeDefinition
from tests import kill_points

GRAPH = derived_id("graph", "indexed")


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"index-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


def definition(text: str, nodes: int = 2, graph_id: str = GRAPH) -> Definition:
    """A graph whose name, and the name of each node, is `text`."""
    ids = [derived_id(graph_id, str(number)) for number in range(nodes)]
    made = [NodeDefinition(each, graph_id, text, "block", {}, {}, (), ()) for each in ids]
    return Definition(Graph(graph_id, text, tuple(ids), {}), made, derived_id("version", text))


def names(arena: Arena, loaded: Definition) -> set[str | None]:
    """The names under which the arena has a graph and its nodes; None for what it does not have."""
    found = [arena.peek(id_bytes(each.id)) for each in loaded.records()]
    return {getattr(decode(each.record), "name", None) if each else None for each in found}


def forget(arena: Arena, *identifiers: str) -> None:
    """Have an arena forget records, as an eviction does."""
    wanted = Transaction()
    wanted.operations += [Delete(id_bytes(each)) for each in identifiers]
    arena.commit(wanted)


@pytest.mark.parametrize("nodes", [0, 1, 126, 127, 300])
def test_what_is_kept_is_there_and_known_with_its_version(arena: Arena, nodes: int) -> None:
    index = DefinitionIndex(arena)
    loaded = definition("first", nodes)
    assert index.keep(index.renew_lease(), loaded)
    assert names(arena, loaded) == {"first"}
    (known,) = index.known().values()
    assert known.version == id_bytes(loaded.version)
    assert known.nodes == [id_bytes(node.id) for node in loaded.nodes]


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (300, 2), (2, 300), (300, 150)])
def test_a_new_version_replaces_all_of_the_old_one(arena: Arena, before: int, after: int) -> None:
    index = DefinitionIndex(arena)
    lease = index.renew_lease()
    old, new = definition("old", before), definition("new", after)
    assert index.keep(lease, old)
    assert index.keep(lease, new)
    assert names(arena, new) == {"new"}
    gone = [node for node in old.nodes if node.id not in new.graph.node_ids]
    assert [arena.peek(id_bytes(node.id)) for node in gone] == [None] * len(gone)
    assert index.known()[id_bytes(GRAPH)].version == id_bytes(new.version)


def test_what_was_being_loaded_when_a_change_came_is_loaded_again(arena: Arena) -> None:
    index = DefinitionIndex(arena)
    versions = ["old", "new"]

    def load() -> Definition:
        loaded = definition(versions.pop(0))
        if versions:
            index.renew_lease()  # the change is heard of between the reading and the keeping
        return loaded

    loaded = index.load(load)
    assert loaded is not None
    assert loaded.graph.name == "new"
    assert names(arena, loaded) == {"new"}


def test_what_is_changed_all_the_time_is_given_out_and_not_kept(arena: Arena) -> None:
    index = DefinitionIndex(arena)

    def load() -> Definition:
        index.renew_lease()
        return definition("restless")

    loaded = index.load(load)
    assert loaded is not None
    assert names(arena, loaded) == {None}
    assert not index.known()


def test_a_superseded_leader_keeps_and_drops_nothing_any_more(arena: Arena) -> None:
    index = DefinitionIndex(arena)
    frozen = index.renew_lease()
    index.keep(index.renew_lease(), definition("newest"))
    assert not index.keep(frozen, definition("old"))
    assert not index.keep(frozen, definition("old", 300))
    assert not index.drop(frozen, id_bytes(GRAPH))
    assert not index.clear(frozen, id_bytes(GRAPH))
    assert names(arena, definition("newest")) == {"newest"}


def test_a_graph_that_was_deleted_is_forgotten_with_its_nodes(arena: Arena) -> None:
    index = DefinitionIndex(arena)
    lease = index.renew_lease()
    for loaded in (definition("small"), definition("large", 300, derived_id("graph", "large"))):
        index.keep(lease, loaded)
        assert index.drop(lease, id_bytes(loaded.graph.id))
        assert names(arena, loaded) == {None}
    assert not index.known()


def test_graphs_that_the_arena_has_nothing_of_leave_the_index(arena: Arena) -> None:
    index = DefinitionIndex(arena)
    lease = index.renew_lease()
    others = [definition("other", 2, new_id()) for _ in range(20)]
    for each in (definition("gone"), *others):
        assert index.keep(lease, each)
    forget(arena, *(each.id for each in definition("gone").records()))
    forget(arena, others[0].graph.id)  # its nodes are still there
    index.tidy()
    assert index.known().keys() == {id_bytes(each.graph.id) for each in others}


def test_an_arena_without_room_has_nothing_old_after_a_change(arena: Arena) -> None:
    index = DefinitionIndex(arena)
    lease = index.renew_lease()
    old = definition("old", 3)
    index.keep(lease, old)
    huge = old.nodes[0]._replace(constants={"text": "x" * (20 << 20)})
    with pytest.raises(definition_index.NOT_KEPT):
        index.keep(lease, old._replace(nodes=[huge, *old.nodes[1:]], version=new_id()))
    assert index.clear(lease, id_bytes(GRAPH))
    assert names(arena, old) == {None}
    assert index.known()[id_bytes(GRAPH)].version == id_bytes(old.version)  # so it is looked at again


def test_definitions_that_an_older_release_left_without_an_index_are_forgotten(arena: Arena) -> None:
    index = DefinitionIndex(arena)
    kept, stray = definition("kept"), definition("stray", 2, derived_id("graph", "stray"))
    index.keep(index.renew_lease(), kept)
    left = Transaction()
    left.operations += [Put(id_bytes(each.id), encode(each)) for each in stray.records()]
    arena.commit(left)
    index.tidy()
    assert names(arena, stray) == {None}
    assert names(arena, kept) == {"kept"}


def part_of(loaded: Definition) -> str:
    return derived_id("definitions", str(id_bytes(loaded.graph.id)[-1]))


def test_what_a_damaged_part_of_the_index_knew_is_forgotten(arena: Arena) -> None:
    index = DefinitionIndex(arena)
    index.tidy()
    lease = index.renew_lease()
    hurt, whole = definition("hurt"), definition("whole", 2, derived_id("graph", "whole"))
    assert part_of(hurt) != part_of(whole)
    index.keep(lease, hurt)
    index.keep(lease, whole)
    part = arena.peek(id_bytes(part_of(hurt)))
    assert part is not None
    begin = arena.version_words()[part.entry + LOCATION] >> OFFSET_SHIFT & ~7
    arena._buffer[begin + 24] ^= 0xFF
    for _ in range(2):
        assert not index.knows(id_bytes(GRAPH))
        index.tidy()
        assert names(arena, hurt) == {None}
        assert names(arena, whole) == {"whole"}
    assert index.load(lambda: hurt) == hurt
    assert names(arena, hurt) == {"hurt"}
    index.tidy()
    assert names(arena, hurt) == {"hurt"}


@pytest.mark.parametrize("step", kill_points.steps_of(definition_index))
@pytest.mark.parametrize(("before", "after"), [(2, 300), (300, 150)])
def test_a_death_while_a_graph_is_replaced_leaves_it_to_be_read_again(
    arena: Arena, step: str, before: int, after: int
) -> None:
    index = DefinitionIndex(arena)
    lease = index.renew_lease()
    old, new = definition("old", before), definition("new", after)
    index.keep(lease, old)
    assert _dies_at(step, lambda: index.keep(lease, new))
    assert index.known()[id_bytes(GRAPH)].version != id_bytes(new.version)
    assert index.keep(index.renew_lease(), new)
    assert names(arena, new) == {"new"}
    assert [arena.peek(id_bytes(node.id)) for node in old.nodes if node.id not in new.graph.node_ids] == [None] * max(
        0, before - after
    )
    assert arena.check() == []


def _dies_at(step: str, work: Callable[[], object]) -> bool:
    """Fork a process that is killed when it comes to a step; return whether it was."""
    pid = os.fork()
    if not pid:
        try:
            kill_points.arm(definition_index, lambda at: os.kill(os.getpid(), 9) if at == step else None)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
