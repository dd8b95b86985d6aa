"""Fuzzing led by coverage: atheris (libFuzzer) keeps what reaches new code, where hypothesis alone draws at random.

    python -m tests.fuzz.guided "WfFormat file" -max_total_time=600

Further arguments are libFuzzer's. It ends at the first finding, whose input it writes to a file in this directory. A
reader of bytes gets libFuzzer's own, which begins with some that hypothesis drew; every other gets what hypothesis's
strategy makes of libFuzzer's bytes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["shmcache", "syncer", "tools"]):
    from tests.fuzz.readers import READERS, Reader

from hypothesis import HealthCheck, Phase, given, settings

from shmcache.arena.segment import segment_path
from tests.fuzz.segments import remove_segment, segment_name
from tests.fuzz.test_fuzz import read

_SEEDS = 300
_CALM = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))


def main(arguments: list[str]) -> None:
    """Fuzz one reader until libFuzzer's limits or a finding. Raises SystemExit."""
    by_name = {reader.name: reader for reader in READERS}
    if len(arguments) < 2 or arguments[1] not in by_name:
        sys.exit(
            f"usage: python -m tests.fuzz.guided READER [libFuzzer's options], READER one of: {', '.join(by_name)}"
        )
    reader = by_name[arguments[1]]
    seeds = _seeds(reader)
    if all(isinstance(each, bytes) for each in seeds):
        directory = Path(tempfile.mkdtemp(prefix="fuzz-seeds-"))
        for number, seed in enumerate(seeds):
            (directory / str(number)).write_bytes(seed)
        atheris.Setup([arguments[0], *arguments[2:], str(directory)], lambda data: read(reader, data))
    else:

        @_CALM
        @given(reader.inputs)
        def survives(given_input: object) -> None:
            read(reader, given_input)

        driven: Any = survives
        atheris.Setup([arguments[0], *arguments[2:]], driven.hypothesis.fuzz_one_input)
    child = os.fork()  # libFuzzer ends its process without a last word
    if not child:
        atheris.Fuzz()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    segment_path(segment_name(child)).unlink(missing_ok=True)
    sys.exit(status)


def _seeds(reader: Reader) -> list[Any]:
    found: list[Any] = []

    @settings(_CALM, max_examples=_SEEDS, phases=[Phase.generate], derandomize=True)
    @given(reader.inputs)
    def collect(given_input: object) -> None:
        found.append(given_input)

    collect()
    remove_segment()
    return found


if __name__ == "__main__":
    main(sys.argv)
