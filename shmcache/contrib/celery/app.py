"""The app of a worker that runs graph executions and nothing else: `celery -A shmcache.contrib.celery.app worker`.

Its broker is `--broker URL`, or CELERY_BROKER_URL."""

import celery

import shmcache.contrib.celery  # noqa: F401 - the tasks

app = celery.Celery("shmcache", set_as_current=True)
app.conf.update(
    broker_connection_retry_on_startup=True,
    # With Redis: how long a lost message stays away. Nothing waits for it: what it stands for is offered again before.
    broker_transport_options={"visibility_timeout": 3600},
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=True,
)
