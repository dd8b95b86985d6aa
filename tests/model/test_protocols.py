"""The protocols hold in every way in which they can go; and with one mistake in them, each of which is found.

MODEL_LARGE=1 for more processes, records and deaths (minutes)."""

from __future__ import annotations

import os
import re
from types import ModuleType

import pytest

from tests.model import charges, commit, lease, leases, ring, stripes, table, waiting
from tests.model.explorer import System, Wrong, explore
from tests.model.mistakes import MISTAKES, Mistake
from tests.model.mutation import mutated

PROTOCOLS = [commit, stripes, table, lease, waiting, ring, charges, leases]
LARGE = bool(os.environ.get("MODEL_LARGE"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.model.__name__}: {mistake.what}")
def test_a_mistake_in_a_protocol_is_found(mistake: Mistake) -> None:
    systems = mutated(mistake.model, mistake.changes, mistake.seen_in).systems()
    with pytest.raises(Wrong) as wrong:
        _explore_all(systems)
    assert re.search(mistake.found, str(wrong.value).splitlines()[0]), wrong.value


@pytest.mark.timeout(3600 if LARGE else 300)
@pytest.mark.parametrize("model", PROTOCOLS, ids=lambda model: model.__name__)
def test_a_protocol_holds_in_every_way_in_which_it_can_go(model: ModuleType) -> None:
    for system in model.large_systems() if LARGE else model.systems():
        assert explore(system, limit=20_000_000).states > 500


def _explore_all(systems: list[System]) -> None:
    for system in systems:
        explore(system)
