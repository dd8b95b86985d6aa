"""One import for each of other people's servers, whose workers then use the arena that `shmcache serve` keeps.

    shmcache.contrib.celery      import it where the Celery app is made
    shmcache.contrib.gunicorn    from it import post_fork, in gunicorn.conf.py
    shmcache.contrib.dramatiq    broker.add_middleware(SharedCache())
    shmcache.contrib.uwsgi       import it in the WSGI module

A worker gets its client from `shmcache.get_db_client()` at its first use in any case, also where none of this is
imported: plain multiprocessing and pools of processes need nothing. What these modules add: a worker attaches when it
starts, so that one without an arena ends with a clear error instead of failing its first request. Nothing of shmcache
imports them.
"""
