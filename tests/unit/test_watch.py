"""A watch: one thread sleeps for all tasks of all loops that wait for a word."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from shmcache.asynchronous.watch import Watch
from shmcache.errors import ClientClosed


class Word:
    """A number that can be waited for."""

    def __init__(self) -> None:
        self.value = 0
        self.changed = threading.Condition()

    def set(self, value: int) -> None:
        with self.changed:
            self.value = value
            self.changed.notify_all()

    def sleep(self, seen: int, timeout_seconds: float, give_up: Callable[[], bool]) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.value != seen or give_up(), timeout_seconds)

    def nudge(self) -> None:
        with self.changed:
            self.changed.notify_all()


@pytest.fixture
def word() -> Word:
    return Word()


@pytest.fixture
def watch(word: Word) -> Iterator[Watch]:
    made = Watch("test watch", lambda: word.value, word.sleep, word.nudge)
    yield made
    made.stop()


def test_each_waits_for_its_own_and_one_thread_sleeps_for_all(word: Word, watch: Watch) -> None:
    async def main() -> None:
        conditions: list[Callable[[], bool]] = [lambda: word.value >= 1, *[lambda: word.value >= 2] * 2]
        waiting = [asyncio.create_task(watch.until(each, None)) for each in conditions]
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
    def fail(*_: object) -> None:
        raise ValueError("the memory is gone")

    async def main() -> None:
        watch = Watch("test watch", lambda: word.value, fail, word.nudge)
        with pytest.raises(ValueError, match="the memory is gone"):
            await watch.until(lambda: False, 30.0)
        with pytest.raises(ValueError, match="the memory is gone"):  # and so is who comes after it
            await watch.until(lambda: False, 30.0)

    asyncio.run(main())


def test_stopped_its_thread_has_ended_and_who_waits_is_told(word: Word, watch: Watch) -> None:
    async def main() -> None:
        task = asyncio.create_task(watch.until(lambda: False, None))
        await asyncio.sleep(0)
        await asyncio.to_thread(watch.stop)
        assert "test watch" not in [each.name for each in threading.enumerate()]
        with pytest.raises(ClientClosed):
            await task
        assert await watch.until(lambda: True, None)  # and it can be used again

    asyncio.run(main())
