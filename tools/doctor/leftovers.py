"""What earlier runs left: segments in /dev/shm, lock files; and whether lock files work where they are kept."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from shmcache.arena import list_arenas, survey
from shmcache.arena.mapping import is_mapping
from shmcache.arena.view import View
from shmcache.config import Settings
from shmcache.errors import ArenaError, ArenaMissing
from syncer.election import ROLES
from tools.doctor.finding import Finding, failure, ok, warning
from tools.doctor.host import Host

_NETWORK = ("nfs", "cifs", "smb", "9p", "ceph", "gluster", "lustre", "fuse", "virtiofs", "afs", "gfs", "ocfs")
_MOST_NAMED = 10


def check_segments() -> list[Finding]:
    """Look at every arena of this user: in use, left over by processes that died, or not to be used."""
    found, problems = [], []
    for name in list_arenas():
        try:
            with contextlib.closing(View(name)) as view:
                alive = sum(lane.alive for lane in survey.lanes(view.memory))
                mapping = is_mapping(survey.header(view.memory).identity)
                unsynced = sum(ring.entries for ring in survey.rings(view.memory))
        except ArenaMissing:
            continue  # removed since it was listed
        except ArenaError as error:
            problems.append(warning("segments", str(error), f"shmcache inspect {name} says what can be seen of it"))
            continue
        if alive or mapping:
            found.append(f"{name} ({alive} processes{', a SharedMapping' if mapping else ''})")
        else:
            left = f"arena {name} was left over: all its processes are dead, {unsynced:,} entries wait"
            advice = f"shmcache drain {name}, or start a supervisor on its database: it drains what it finds"
            problems.append(warning("segments", left, advice))
    return problems or [ok("segments", ", ".join(found[:_MOST_NAMED]) or "none")]


def check_lock_files(settings: Settings) -> Finding:
    """Look at the lock files of this state directory: whose they are, and which are of arenas that are gone."""
    directory = settings.state_dir / "locks"
    try:
        files = sorted(directory.glob("*.lock"))
        owner = directory.stat().st_uid
    except FileNotFoundError:
        return ok("lock files", "none")
    except PermissionError:
        return failure("lock files", f"{directory} cannot be read", "give it to this user, or set SHMCACHE_STATE_DIR")
    if owner != os.geteuid() and os.geteuid() != 0:
        return failure("lock files", f"{directory} belongs to user {owner}", "set SHMCACHE_STATE_DIR to one's own")
    arenas = set(list_arenas())
    left = [path for path in files if _arena_of(path) not in arenas and not _is_held(path)]
    if left:
        return ok("lock files", f"{len(files)}, {len(left)} of them of arenas that are gone: they hurt nobody")
    return ok("lock files", f"{len(files)} in {directory}")


def check_locking(settings: Settings, host: Host) -> Finding:
    """Hold a lock file in another process, see that it holds, kill that process, see that the lock is free."""
    place = settings.state_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    mount = host.mount_of(place)
    kind = mount.kind if mount else "unknown"
    if not os.access(place, os.W_OK | os.X_OK):
        return failure("locking", f"{place} cannot be written", "give it to this user, or set SHMCACHE_STATE_DIR")
    with tempfile.TemporaryDirectory(dir=place, prefix="doctor-") as directory:
        held, freed = _try_lock(Path(directory) / "probe.lock")
    if not held or not freed:
        wrong = "a lock did not keep others out" if not held else "a killed process's lock stayed held"
        return failure("locking", f"{wrong} on {kind} at {place}", "set SHMCACHE_STATE_DIR to a local file system")
    if kind.lower().startswith(_NETWORK):
        return warning(
            "locking", f"{place} is on {kind}: its locks are as good as that is",
            "set SHMCACHE_STATE_DIR to a local file system: leaders are elected by lock files",
        )  # fmt: skip
    return ok("locking", f"works on {kind} at {place}")


def _try_lock(path: Path) -> tuple[bool, bool]:
    """Return whether a lock file kept this process out while another held it, and let it in when that was killed."""
    told, tell = os.pipe()
    stay, leave = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            os.close(leave)
            lock = FileLock(path)
            lock.acquire()
            os.write(tell, b"1")
            os.read(stay, 1)  # until it is killed, or its parent is gone
        os._exit(1)
    for descriptor in (tell, stay):
        os.close(descriptor)
    os.read(told, 1)
    held = _is_held(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for descriptor in (told, leave):
        os.close(descriptor)
    return held, not _is_held(path)


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _arena_of(lock_file: Path) -> str:
    name = lock_file.name.removesuffix(".lock")
    for role in ROLES:
        name = name.removesuffix(f".{role}")
    return name
