"""A watch: one thread sleeps for all tasks of all loops that wait for a word."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shmcache.watch import Watch


class Word:
    """A number that can be waited for."""

    def __init__(self) -> None:
        self.value = 0
        self.changed = threading.Condition()
        self.sleeps = 0

    def set(self, value: int) -> None:
        with self.changed:
            self.value = value
            self.changed.notify_all()

    def sleep(self, seen: int, timeout_seconds: float) -> None:
        with self.changed:
            self.sleeps += 1
            self.changed.wait_for(lambda: self.value != seen, timeout_seconds)


@pytest.fixture
def word() -> Word:
    return Word()


@pytest.fixture
def watch(word: Word) -> Watch:
    return Watch("test watch", lambda: word.value, word.sleep)


def test_each_waits_for_its_own_and_one_thread_sleeps_for_all(word: Word, watch: Watch) -> None:
    async def main() -> None:
        waiting = [asyncio.create_task(watch.until(lambda wanted=n: word.value >= wanted, None)) for n in (1, 2, 2)]
        await asyncio.sleep(0)
        assert [each.name for each in threading.enumerate()].count("test watch") == 1
        word.set(1)
        assert await waiting[0]
        assert not any(each.done() for each in waiting[1:])
        word.set(2)
        assert await asyncio.gather(*waiting) == [True] * 3

    asyncio.run(main())


def test_what_is_there_already_is_not_slept_for(word: Word, watch: Watch) -> None:
    assert asyncio.run(watch.until(lambda: True, 0.0))


def test_after_the_time_it_says_whether_it_came(word: Word, watch: Watch) -> None:
    assert not asyncio.run(watch.until(lambda: False, 0.01))


def test_tasks_of_several_loops_are_woken_in_their_own(word: Word, watch: Watch) -> None:
    answers: list[bool] = []
    ready = threading.Barrier(5)

    async def wait() -> None:
        task = asyncio.create_task(watch.until(lambda: word.value == 1, None))
        await asyncio.sleep(0)
        ready.wait()
        answers.append(await task)

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(4)]
    for each in threads:
        each.start()
    ready.wait()
    word.set(1)
    for each in threads:
        each.join(30)
    assert answers == [True] * 4


def test_a_cancelled_task_is_waited_for_no_longer(word: Word, watch: Watch) -> None:
    async def main() -> None:
        task = asyncio.create_task(watch.until(lambda: False, None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not watch._waiting

    asyncio.run(main())


def test_who_waits_is_told_what_stopped_the_thread(word: Word) -> None:
    def fail(seen: int, timeout_seconds: float) -> None:
        raise ValueError("the memory is gone")

    async def main() -> None:
        watch = Watch("test watch", lambda: word.value, fail)
        with pytest.raises(ValueError, match="the memory is gone"):
            await watch.until(lambda: False, 30.0)
        with pytest.raises(ValueError, match="the memory is gone"):  # and so is who comes after it
            await watch.until(lambda: False, 30.0)

    asyncio.run(main())
