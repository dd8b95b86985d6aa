"""uWSGI: `import shmcache.contrib.uwsgi` in the WSGI module.

Each worker attaches after it was forked, before its first request.
"""

from __future__ import annotations

from uwsgidecorators import postfork

from shmcache.session import get_db_client


@postfork  # type: ignore[untyped-decorator]
def attach() -> None:
    """Attach this worker. Raises ShmcacheError."""
    get_db_client()
