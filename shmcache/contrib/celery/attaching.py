"""Celery: `import shmcache.contrib.celery` where the app is made.

The worker ends at its start if no arena is there, and each process of its prefork pool attaches before its first task.
"""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.signals import worker_init, worker_process_init

from shmcache.arena.view import View
from shmcache.config import load_settings
from shmcache.errors import ShmcacheError
from shmcache.session import get_db_client


class DurableTask(Task):  # type: ignore[misc]
    """A task that has ended when what it wrote is in PostgreSQL: `@app.task(base=DurableTask)`.

    It is acknowledged to the broker only then (`acks_late`), so that a task whose machine was lost is delivered again
    unless all of its writes are there."""

    abstract = True
    acks_late = True

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run the task, then wait for its writes."""
        result = super().__call__(*arguments, **options)
        get_db_client().flush()
        return result


@worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
def require_arena(**_: Any) -> None:
    """End the worker if there is no arena to attach to. Raises SystemExit."""
    try:
        View(load_settings().arena).close()
    except ShmcacheError as error:
        # Celery logs what a signal's receiver raises, and goes on.
        raise SystemExit(f"shmcache: {error}") from None


@worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
def attach(**_: Any) -> None:
    """Attach a process of the pool."""
    get_db_client()
