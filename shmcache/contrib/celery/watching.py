"""The watch: a thread in a worker's main process that offers what nobody runs, by new messages.

Once a second it asks the database what is to be offered (`database.submissions`): so what a lost host had is running
elsewhere a second after its lease, whatever its broker does with messages of consumers that are gone. Of all workers'
watches one offers it. It also looks whether its own host has work and nobody who does it (all who did were killed, or
the worker was started again): then it sends itself a message.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import psycopg
from celery import Celery
from celery.apps.worker import Worker
from celery.signals import celeryd_after_setup, worker_ready, worker_shutting_down
from kombu.exceptions import OperationalError

from shmcache.arena import survey
from shmcache.arena.view import View
from shmcache.config import Settings, load_settings
from shmcache.contrib.celery import hosts
from shmcache.contrib.celery.running import NAME
from shmcache.database import submissions
from shmcache.database.connection import connect
from shmcache.errors import ShmcacheError
from shmcache.session import served_database_url

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_FORGET_EVERY = 10
_watch: Watch | None = None


class Watch(threading.Thread):
    """Offers, until `stop`."""

    def __init__(self, app: Celery, settings: Settings, node_name: str) -> None:
        super().__init__(name="shmcache watch", daemon=True)
        self._app = app
        self._settings = settings
        self._node_name = node_name
        self._attendance = hosts.Attendance(settings.state_dir, settings.arena)
        self._arena_id = arena_id_of(settings.arena)
        self._connection: psycopg.Connection[Any] | None = None
        self._unattended = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Look, once a second."""
        turn = 0
        while not self._ended.wait(_INTERVAL_SECONDS):
            turn += 1
            try:
                self._look(forget=turn % _FORGET_EVERY == 0)
            except (psycopg.Error, ShmcacheError, OperationalError, OSError) as error:
                logger.debug("what is to be offered is looked for later: %s", error)
                self._disconnect()
            except Exception:
                logger.exception("what is to be offered is looked for later")
                self._disconnect()
        self._disconnect()

    def stop(self) -> None:
        """End at the next turn."""
        self._ended.set()

    def _look(self, *, forget: bool) -> None:
        if self._connection is None or self._connection.closed:
            url = served_database_url(self._settings)
            self._connection = connect(url, application_name="shmcache watch")
        if forget:
            submissions.forget_ended(self._connection)
        self._offer(self._connection)
        self._look_after_own(self._connection)

    def _offer(self, connection: psycopg.Connection[Any]) -> None:
        # Sent inside the transaction: should the broker be away, nothing was offered.
        with connection.transaction():
            due = submissions.offer(connection, self._settings.host_lease)
            waiting = {queue: self._waiting(queue) for queue in {each.queue for each in due if not each.was_owned}}
            for each in due:
                if each.was_owned or not waiting[each.queue]:
                    logger.info("graph execution %s is offered again", each.graph_exec_id)
                    self._app.send_task(NAME, (each.graph_exec_id,), queue=each.queue)

    def _waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        with self._app.connection_for_write() as broker, broker.channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except (*broker.channel_errors, *broker.connection_errors):
                return 0  # there is no such queue

    def _look_after_own(self, connection: psycopg.Connection[Any]) -> None:
        """Have somebody work here, if there is work and nobody does it for a second time."""
        arena_id = arena_id_of(self._settings.arena)
        if arena_id != self._arena_id:  # made anew beneath this worker
            self._arena_id = arena_id
            queue = hosts.queue_of(arena_id)
            self._app.control.add_consumer(queue.name, routing_key=queue.name, destination=[self._node_name])
        with View(self._settings.arena) as view:
            has_work = survey.work_outstanding(view.memory) > 0
        self._unattended = self._unattended + 1 if has_work and self._attendance.is_nobody() else 0
        if self._unattended >= 2:
            self._unattended = 0
            for graph_exec_id in submissions.of_arena(connection, arena_id, 1):
                logger.info("work was left on this host: graph execution %s is gone on with", graph_exec_id)
                self._app.send_task(NAME, (graph_exec_id,), queue=hosts.queue_of(arena_id))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def arena_id_of(arena_name: str) -> str:
    """Return the identifier of an arena. Raises ArenaMissing, ArenaUnusable."""
    with View(arena_name) as view:
        return survey.header(view.memory).arena_id


@celeryd_after_setup.connect(weak=False)  # type: ignore[untyped-decorator]
def consume_own_queue(instance: Worker, **_: Any) -> None:
    """Have the worker take what is for its host."""
    settings = load_settings()
    try:
        instance.app.amqp.queues.select_add(hosts.queue_of(arena_id_of(settings.arena)))
    except ShmcacheError as error:
        raise SystemExit(f"shmcache: {error}") from None


@worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
def begin_watch(sender: Any, **_: Any) -> None:
    """Start the watch when the worker takes messages."""
    global _watch  # noqa: PLW0603 - one a worker, by intent
    hosts.begin()
    if _watch is None:
        _watch = Watch(sender.app, load_settings(), sender.hostname)
        _watch.start()


@worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
def end_watch(**_: Any) -> None:
    """Have the children leave their graph executions after the node at hand."""
    global _watch  # noqa: PLW0603
    hosts.end()
    if _watch is not None:
        _watch.stop()
        _watch = None
