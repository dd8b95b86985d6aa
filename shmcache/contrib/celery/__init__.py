"""Celery: `import shmcache.contrib.celery` where the app is made.

The worker ends at its start if no arena is there, and each process of its prefork pool attaches before its first task.

    DurableTask      a base for tasks of yours that have ended when what they wrote is in PostgreSQL
    run_graph        the task that runs a graph execution, on whichever host takes it; the app has it by this import
    Watch            offers what no host runs; each worker has one by this import
    submit           create a graph execution and have `run_graph` run it

`celery -A shmcache.contrib.celery.app worker` is a worker that has nothing else.
"""

from shmcache.contrib.celery.attaching import DurableTask
from shmcache.contrib.celery.running import run_graph, submit
from shmcache.contrib.celery.watching import Watch

__all__ = ["DurableTask", "Watch", "run_graph", "submit"]
