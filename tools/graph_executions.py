"""What `shmcache submit`, `status` and `cancel` do: graph executions by way of the database, from any machine."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shmcache.config import Settings
from shmcache.database import ownership, submissions
from shmcache.database.connection import connect
from shmcache.database.queries import create_account, load_graph_execution, save_graph
from shmcache.errors import SettingsError, Unavailable
from shmcache.graphs import load_graph_files
from shmcache.identifiers import id_bytes, id_text, new_id
from shmcache.reader import Reader
from shmcache.records import FINAL_STATUSES, ExecutionStatus
from shmcache.setting_texts import without_passwords
from tools.database import database_url, open_database

_TASK = "shmcache.run_graph"
_BROKER_SECONDS = 5


class BrokerUnavailable(Unavailable):
    """A broker cannot be reached. `broker_url` is without its password."""

    def __init__(self, broker_url: str, problem: str, left: int = 0) -> None:
        said = f"; {left} graph executions are submitted and offered to it later" if left else "; nothing was submitted"
        super().__init__(f"broker {without_passwords(broker_url)}: {problem}{said}: check --broker")
        self.broker_url = without_passwords(broker_url)


def submit_files(
    settings: Settings,
    files: Sequence[Path],
    broker_url: str,
    queue: str,
    repeat: int,
    time_scale: float,
    user_id: str | None,
    as_json: bool,
) -> None:
    """Save graphs, create their executions and send them to a broker; print their ids.

    Raises GraphFileError, SettingsError, BrokerUnavailable, DatabaseUnavailable."""
    user = new_id() if user_id is None else id_text(id_bytes(user_id))
    loaded = [load_graph_files(path, time_scale=time_scale) for path in files]
    _require_database(settings)
    with _Broker(broker_url, queue) as broker, open_database(settings) as connection:
        for graph in chain.from_iterable(loaded):
            save_graph(connection, graph.graph, graph.nodes)
        create_account(connection, user, settings.opening_balance)
        made = [
            submissions.submit(connection, whole[0].graph.id, user, queue=queue)
            for _ in range(repeat)
            for whole in loaded
        ]
        for number, identifier in enumerate(made):
            broker.send(identifier, left=len(made) - number)
    if as_json:
        sys.stdout.write(json.dumps({"graph_executions": made, "user": user}) + "\n")
    else:
        sys.stdout.writelines(f"{identifier}\n" for identifier in made)


def show_status(settings: Settings, graph_exec_id: str, wait_seconds: float | None, as_json: bool) -> bool:
    """Print how far a graph execution is; return False if it was waited for, and is not COMPLETED.

    Raises NotFound, InvalidValue, DatabaseUnavailable."""
    id_bytes(graph_exec_id)
    with database_url(settings) as url, connect(url, application_name="shmcache status") as connection:
        with Reader(url, table_set=settings.schema) as reader:
            if wait_seconds is None:
                execution = reader.graph_execution(graph_exec_id)
            else:
                execution = reader.wait_until(graph_exec_id, timeout_seconds=wait_seconds)
            nodes = reader.node_executions(graph_exec_id)
        owner = ownership.owner_of(connection, graph_exec_id)
        cancelled = submissions.is_cancelled(connection, graph_exec_id)
    found: dict[str, Any] = {
        "graph_execution": execution.id,
        "status": execution.status.value,
        "graph": execution.graph_id,
        "user": execution.user_id,
        "created_at": execution.created_at,
        "started_at": execution.started_at,
        "ended_at": execution.ended_at,
        "node_executions": len(nodes),
        "node_executions_by_status": dict(sorted(Counter(each.status.value for each in nodes).items())),
        "cost": sum(each.stats.get("cost", 0) for each in nodes),
        "host": None if owner is None else owner[0],
        "lost_hosts": execution.stats.get("lost_hosts", 0),
        "is_to_be_cancelled": cancelled and execution.status not in FINAL_STATUSES,
        "error": execution.stats.get("error"),
    }
    _print(found, as_json)
    return wait_seconds is None or execution.status is ExecutionStatus.COMPLETED


def cancel_one(settings: Settings, graph_exec_id: str, as_json: bool) -> bool:
    """Have a graph execution end; print its status; return False if it had ended before.

    Raises NotFound, InvalidValue, DatabaseUnavailable."""
    with open_database(settings) as connection:
        had_ended = submissions.cancel(connection, graph_exec_id) in FINAL_STATUSES
        execution = load_graph_execution(connection, graph_exec_id)
    assert execution is not None, "nobody removes an execution"
    now = execution.status
    if as_json:
        found = {"graph_execution": execution.id, "status": now.value, "had_ended": had_ended}
        sys.stdout.write(json.dumps(found) + "\n")
    elif had_ended:
        sys.stdout.write(f"{execution.id} had ended before: it is {now.value}\n")
    elif now in FINAL_STATUSES:
        sys.stdout.write(f"{execution.id} is {now.value}\n")
    else:
        sys.stdout.write(f"{execution.id} is {now.value}, and will be TERMINATED after the nodes at hand\n")
    return not had_ended


def _require_database(settings: Settings) -> None:
    if settings.database_url is None:
        raise SettingsError(
            "SHMCACHE_DATABASE_URL: not set: who submits and who runs graph executions meet in one database"
        )


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    table = Table(show_header=False)
    for name, value in found.items():
        if value is None or value == {}:
            continue
        shown = ", ".join(f"{count} {key}" for key, count in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)


class _Broker:
    """A connection to Celery's broker, tried before anything is submitted."""

    def __init__(self, url: str, queue: str) -> None:
        try:
            from celery import Celery
        except ImportError:
            raise SettingsError("Celery is not installed here: pip install 'shmcache[celery]'") from None
        self._url = url
        self._queue = queue
        self._app = Celery("shmcache", broker=url, set_as_current=False)
        self._app.conf.task_default_queue = queue

    def __enter__(self) -> _Broker:
        def reach() -> None:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=_BROKER_SECONDS)

        self._try(reach, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._app.close()

    def send(self, graph_exec_id: str, left: int) -> None:
        """Send a message for a graph execution. Raises BrokerUnavailable."""
        self._try(lambda: self._app.send_task(_TASK, (graph_exec_id,), queue=self._queue, retry=False), left)

    def _try(self, action: Callable[[], object], left: int) -> None:
        # Whatever a broker's client says of an address, and whatever transport it may be: these are all its errors.
        try:
            action()
        except Exception as error:
            text = without_passwords(" ".join(str(error).split())) or type(error).__name__
            raise BrokerUnavailable(self._url, text, left) from None
