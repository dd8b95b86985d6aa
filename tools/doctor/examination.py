"""All checks, by area. One that fails in a way nobody expected is a finding, and the others go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shmcache.config import Settings, is_secret, load_with_origins
from shmcache.setting_layers import config_file
from shmcache.setting_texts import without_passwords
from tools.doctor import database, leftovers, limits, memory, platform, python
from tools.doctor.finding import Finding, failure, ok, warning
from tools.doctor.host import Host

_Answer = Finding | list[Finding]


class Area(NamedTuple):
    """What was found in one area."""

    name: str
    findings: list[Finding]


def examine(settings: Settings, host: Host) -> list[Area]:
    """Do all checks."""
    checks: dict[str, list[Callable[[], _Answer]]] = {
        "settings": [check_settings],
        "platform": [
            platform.check_system, platform.check_python, platform.check_libc, platform.check_robust_mutex,
            platform.check_futex, platform.check_processes,
        ],
        "shared memory": [
            lambda: memory.check_mount(host), lambda: memory.check_fit(settings, host),
            lambda: memory.check_memory_limit(settings, host), lambda: memory.check_removal(host),
        ],
        "limits": [
            limits.check_descriptors, lambda: limits.check_process_limit(settings, host),
            lambda: limits.check_sizes(settings), limits.check_locked_memory,
        ],
        "multiprocessing": [python.check_start_method, python.check_semaphores, python.check_spawn],
        "left over": [
            leftovers.check_segments, lambda: leftovers.check_lock_files(settings),
            lambda: leftovers.check_locking(settings, host),
        ],
        "PostgreSQL": [lambda: database.check_database(settings)],
    }  # fmt: skip
    return [Area(name, [each for check in area for each in _findings_of(name, check)]) for name, area in checks.items()]


def check_settings() -> Finding:
    """Look at the file of settings, which may hold a password; that they can be used is known by now."""
    path = config_file()
    if path is None:
        return ok("file", "none")
    _, origins = load_with_origins()
    secrets = [name for name, origin in origins.items() if origin.source == "file" and is_secret(name)]
    if secrets and Path(path).stat().st_mode & 0o077:
        return warning("file", f"{path} may be read by others, and sets {', '.join(secrets)}", f"chmod 600 {path}")
    return ok("file", str(path))


def _findings_of(area: str, check: Callable[[], _Answer]) -> list[Finding]:
    try:
        answer = check()
    except Exception as error:
        text = without_passwords(" ".join(f"{type(error).__name__}: {error}".split()))
        return [failure(area, f"could not be checked: {text}", "look into it: other checks may not see the same")]
    return answer if isinstance(answer, list) else [answer]
