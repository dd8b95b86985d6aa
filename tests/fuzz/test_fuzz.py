"""No input makes a reader crash, hang, or say anything but one clear error.

FUZZ_INPUTS=100000 for the long run: so many inputs over all readers. Without it each reader gets some hundred.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shmcache.errors import ShmcacheError
from tests.fuzz.corpus import FOUND
from tests.fuzz.readers import READERS, Reader
from tests.fuzz.segments import remove_segment

INPUTS = int(os.environ.get("FUZZ_INPUTS", "0"))
EACH = INPUTS // len(READERS) + 1 if INPUTS else 150
LONGEST_SECONDS = 5.0
"""Of the processor's time: none takes a hundredth of it."""
_BY_NAME = {reader.name: reader for reader in READERS}


@pytest.fixture(scope="module", autouse=True)
def _segment_is_removed() -> Iterator[None]:
    yield
    remove_segment()


def read(reader: Reader, given_input: object) -> None:
    """Give a reader an input, and look what it does with it."""
    said = "nothing, as it was right"
    begun = time.process_time()
    try:
        reader.read(given_input)
    except reader.may_raise:
        pass
    except ShmcacheError as error:
        said = str(error)
    taken = time.process_time() - begun
    assert [said] == said.splitlines(), said
    assert len(said) < 2_000, said
    assert taken < LONGEST_SECONDS, f"it took {taken:.1f} s"


@pytest.mark.timeout(3600 if INPUTS else 300)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_reader_survives_whatever_it_is_given(reader: Reader) -> None:
    @settings(
        max_examples=EACH, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink], derandomize=not INPUTS,
    )  # fmt: skip
    @given(reader.inputs)
    def survives(given_input: object) -> None:
        read(reader, given_input)

    survives()


@pytest.mark.parametrize("number", range(len(FOUND)), ids=lambda number: f"{FOUND[number][0]} {number}")
def test_what_was_found_once_is_survived(number: int) -> None:
    name, given_input = FOUND[number]
    read(_BY_NAME[name], given_input)


def test_a_reader_that_crashes_hangs_or_mumbles_is_found() -> None:
    def reads(*, error: Exception | None = None, seconds: float = 0.0) -> Reader:
        def work(_: object) -> None:
            until = time.process_time() + seconds
            while time.process_time() < until:
                pass
            if error is not None:
                raise error

        return Reader("a test's", st.none(), work, (ValueError,))

    read(reads(error=ValueError("nothing of ours")), None)
    read(reads(error=ShmcacheError("one clear sentence")), None)
    for bad in (reads(error=KeyError("x")), reads(error=ShmcacheError("")), reads(error=ShmcacheError("two\nlines"))):
        with pytest.raises((KeyError, AssertionError)):
            read(bad, None)
    with pytest.raises(AssertionError, match="it took"):
        read(reads(seconds=LONGEST_SECONDS * 1.02), None)
