"""Dead letters tried again: by the same batch writing as entries that come from a ring.

    1  hold     the letters' rows are locked: two who replay the same one wait for each other
    2  write    as `SyncManager` and the charge pool write: what is refused is found by bisection
    3  settle   letters whose row was written are deleted, the others keep the new error

All in one transaction: a death leaves every letter as it was, and a letter that was replayed is gone. A row that was
overtaken meanwhile (an execution that has moved on, an output that is there) changes nothing, by the same rules that
hold for what comes from a ring; one of a graph execution that is another host's now is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg

from shmcache.database.batches import write_batch
from shmcache.database.dead_letters import HeldLetter, delete_dead_letters, hold_dead_letters, refuse_dead_letter
from shmcache.database.ownership import lost, lost_charges
from shmcache.database.settlement import settle
from shmcache.errors import NotOwner
from shmcache.writes import Charge, Write
from syncer.entries import CHARGE_RING, read_charge, read_write
from syncer.refusals import write_around_refusals

V = TypeVar("V")


class Replayed(NamedTuple):
    """What came of a replay, by the letters' ids: written and gone; refused once more, with why; not there."""

    written: list[int]
    refused: dict[int, str]
    missing: list[int]


def replay(connection: psycopg.Connection[Any], letter_ids: Sequence[int]) -> Replayed:
    """Write dead letters to where they belong and delete those that went. Raises psycopg.Error for what passes."""
    refused: dict[int, str] = {}

    def refuse(letter: HeldLetter, error: Exception) -> None:
        refused[letter.id] = " ".join(str(error).split())
        refuse_dead_letter(connection, letter.id, error)

    with connection.transaction():
        letters = hold_dead_letters(connection, letter_ids)
        writes = _readable([each for each in letters if each.ring != CHARGE_RING], read_write, refuse)
        charges = _readable([each for each in letters if each.ring == CHARGE_RING], read_charge, refuse)

        def write_some(some: Sequence[tuple[HeldLetter, Write]]) -> None:
            with connection.transaction():
                write_batch(connection, [row for _, row in some])

        def settle_some(some: Sequence[tuple[HeldLetter, tuple[int, Charge]]]) -> None:
            with connection.transaction():
                settle(connection, [charge for _, charge in some])

        writes = _own(connection, writes, refuse)
        charges = _own_charges(connection, charges, refuse)
        write_around_refusals(writes, write_some, lambda item, error: refuse(item[0], error))
        write_around_refusals(charges, settle_some, lambda item, error: refuse(item[0], error))
        written = [each.id for each in letters if each.id not in refused]
        delete_dead_letters(connection, written)
    return Replayed(written, refused, sorted({*letter_ids} - {each.id for each in letters}))


def _own(
    connection: psycopg.Connection[Any],
    writes: Sequence[tuple[HeldLetter, Write]],
    refuse: Callable[[HeldLetter, Exception], None],
) -> list[tuple[HeldLetter, Write]]:
    """Return the rows that are still their hosts' to write."""
    reasons: dict[tuple[str, int], NotOwner] = {}
    for arena_id in sorted({letter.arena_id for letter, _ in writes}):
        rows = [(letter.sequence, row) for letter, row in writes if letter.arena_id == arena_id]
        for sequence, reason in lost(connection, arena_id, rows, lock=True).items():
            reasons[arena_id, sequence] = reason
    for letter, _ in writes:
        if (letter.arena_id, letter.sequence) in reasons:
            refuse(letter, reasons[letter.arena_id, letter.sequence])
    return [each for each in writes if (each[0].arena_id, each[0].sequence) not in reasons]


def _own_charges(
    connection: psycopg.Connection[Any],
    charges: Sequence[tuple[HeldLetter, tuple[int, Charge]]],
    refuse: Callable[[HeldLetter, Exception], None],
) -> list[tuple[HeldLetter, tuple[int, Charge]]]:
    """Return the charges that are not for what another host has done in place of theirs."""
    reasons: dict[int, NotOwner] = {}
    for arena_id in sorted({letter.arena_id for letter, _ in charges}):
        known = [(letter.id, charge) for letter, (_, charge) in charges if letter.arena_id == arena_id]
        reasons |= lost_charges(connection, arena_id, known)
    for letter, _ in charges:
        if letter.id in reasons:
            refuse(letter, reasons[letter.id])
    return [each for each in charges if each[0].id not in reasons]


def _readable(
    letters: Sequence[HeldLetter], read: Callable[[int, bytes], V], refuse: Callable[[HeldLetter, Exception], None]
) -> list[tuple[HeldLetter, V]]:
    found: list[tuple[HeldLetter, V]] = []
    for letter in letters:
        try:
            if not letter.intact:
                raise ValueError("the entry's checksum did not match its bytes")
            found.append((letter, read(letter.kind, letter.payload)))
        except ValueError as error:
            refuse(letter, error)
    return found
