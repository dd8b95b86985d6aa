"""The task that runs a graph execution, and how one is submitted.

A message says only that there is a graph execution to run. The task looks in the database whose it is:

    nobody's, or a lost host's     it is taken, and run here as far as it has come
    this host's                    it is gone on with, together with the other processes of the host
    another, living host's         the message goes on to that host's queue
    it has ended                   there is nothing to do

A process that runs one takes entries of the host's work queue, whichever graph execution they are of, until its own has
ended. What is never lost with messages, processes or hosts is the submission's row (`database.submissions`): see
`watching`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from celery import Celery, Task, current_app, shared_task

from shmcache.config import load_settings
from shmcache.contrib.celery.hosts import Attendance, is_stopping, queue_of
from shmcache.database import submissions
from shmcache.database.connection import connect, with_table_set
from shmcache.errors import NotFound, NotOwner, SettingsError, StillAtWork, Unavailable
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.manager import Manager, Stopped
from shmcache.progress import heartbeat
from shmcache.records import FINAL_STATUSES
from shmcache.session import get_db_client, prepared_arena
from shmcache.tracing import of_runs

logger = logging.getLogger(__name__)

T = TypeVar("T")

NAME = "shmcache.run_graph"
_TAKE_SECONDS = 0.1
_RETRY_SECONDS = 0.5


@shared_task(  # type: ignore[untyped-decorator]
    name=NAME, bind=True, acks_late=True, reject_on_worker_lost=True, ignore_result=True, max_retries=None
)
def run_graph(self: Task, graph_exec_id: str) -> None:
    """Run a graph execution to its end on this host, or pass it on to the host that has it."""
    client = get_db_client()
    try:
        execution = _patiently(client.resume_graph_execution, graph_exec_id)
    except NotOwner as error:
        logger.info("graph execution %s is of host %s: passed on", graph_exec_id, error.arena_id)
        self.apply_async((graph_exec_id,), queue=queue_of(error.arena_id))
        return
    except StillAtWork as error:
        raise self.retry(exc=error, countdown=1) from None
    except NotFound as error:
        logger.error("%s", error)
        return
    except Stopped:
        return
    if execution.status not in FINAL_STATUSES:
        attend(client, graph_exec_id)


def attend(client: ExecutionDataClient, graph_exec_id: str) -> None:
    """Do the host's work until a graph execution has ended, or the worker is ending: then the next one goes on."""
    settings = load_settings()
    manager = Manager(client, is_stopping, settings.max_attempts, durable_ends=settings.flush_on == "node")
    do = of_runs(client, manager.do)
    with Attendance(settings.state_dir, prepared_arena().name).attending():
        try:
            while not is_stopping():
                if _patiently(client.get_graph_execution, graph_exec_id).status in FINAL_STATUSES:
                    return
                work = client.take_work(_TAKE_SECONDS)
                if work is not None:
                    do(work)
        except Stopped:
            return


def submit(
    graph_id: str,
    user_id: str,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    app: Celery | None = None,
    queue: str | None = None,
    database_url: str | None = None,
    graph_version: int = 1,
    preset_id: str | None = None,
) -> str:
    """Create a graph execution and have one of the app's workers run it; return its id. Needs no arena.

    The graph and the user's account are in the database. `queue`: the app's default one if not given; `database_url`:
    SHMCACHE_DATABASE_URL. If the broker is away the graph execution is there all the same, and is offered again. Raises
    NotFound, InvalidValue, DatabaseUnavailable, and what the broker's client raises."""
    settings = load_settings()
    url = database_url or settings.database_url
    if url is None:
        raise SettingsError("SHMCACHE_DATABASE_URL: not set: a graph execution is submitted by way of the database")
    own = app or current_app
    name = queue or str(own.conf.task_default_queue)
    with connect(with_table_set(url, settings.schema), application_name="shmcache submit") as connection:
        identifier = submissions.submit(
            connection, graph_id, user_id, inputs, queue=name, graph_version=graph_version, preset_id=preset_id
        )
    own.send_task(NAME, (identifier,), queue=name)
    return identifier


def _patiently(action: Callable[[str], T], graph_exec_id: str) -> T:
    """Do something again and again while the database is away. Raises Stopped when the worker is ending."""
    while True:
        try:
            return action(graph_exec_id)
        except Unavailable as error:
            if is_stopping():
                raise Stopped from error
            heartbeat()
            threading.Event().wait(_RETRY_SECONDS)
