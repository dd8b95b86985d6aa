"""A host from within: the first process of its namespaces. It has a /dev/shm, serve and a Celery worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run until SIGTERM, or until serve ends; then end both in order. A worker that crashes is started again."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"], check=True)
    ours = [sys.executable, "-m", "tools.cli", "serve"]
    serve = subprocess.Popen(ours)
    subprocess.run([*ours, "--check", "--wait", "60"], check=True)
    command = [
        str(Path(sys.executable).parent / "celery"), "-A", "shmcache.contrib.celery.app", "worker",
        "--concurrency", os.environ["CONCURRENCY"], "--without-mingle", "--without-gossip", "--loglevel", "INFO",
        "-n", os.environ["SHMCACHE_ARENA"],
    ]  # fmt: skip
    worker = subprocess.Popen(command)
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        worker.terminate()

    signal.signal(signal.SIGTERM, ask)
    while worker.wait() and not asked and serve.poll() is None:
        worker = subprocess.Popen(command)
    serve.terminate()
    serve.wait()


if __name__ == "__main__":
    main()
