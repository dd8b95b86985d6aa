"""The workers of pytest-xdist as executors: all on one arena and one database, which are judged at the end.

The controlling process of pytest has one PostgreSQL database and one `shmcache serve` (arena, syncers, charger) as soon
as a worker has collected a test of this directory; the others pay nothing. Each test attaches to that arena, does
there what executors do, journals what was acknowledged to it, and leaves. When all workers have ended, `judging`
compares the whole: it does the work that was left, looks at the arena, compares all journals with the database, audits
the accounts, and ends what it started. The run fails if anything is lost, doubled, out of order, unbalanced or left.

    tools/dev test -n4 tests/stress/executors         -n 16, -n 0, in any order
    EXECUTORS_STEPS=2000 tools/dev test -n4 ...      the long run

A worker may be killed at any time: xdist starts another one, and the judgement holds. `kills_its_worker.py` and
`does_harm.py` are collected only where they are named: `tests/stress/test_executors.py` does.
"""
