"""Unit files, Dockerfile and manifests: parsed, checked by the tools that are here, and held to our code."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ByteSize, TypeAdapter

from shmcache.config import Settings, load_settings
from tools.cli import cli
from tools.processes import CannotStart

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "tools" / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def size(text: str) -> int:
    """Return a size in bytes. Docker's m and Kubernetes' Mi are both 2 to the 20th."""
    return int(TypeAdapter(ByteSize).validate_python(re.sub(r"(?<=\d)([mg])i?$", r"\1ib", text.lower())))


def parses(arguments: list[str]) -> None:
    """Check that a command line of ours is one."""
    command = cli.commands[arguments[0]]
    with command.make_context(arguments[0], list(arguments[1:])):
        pass


def known(name: str) -> bool:
    """Say whether an environment variable is a setting."""
    return name.removeprefix("SHMCACHE_").lower() in Settings.model_fields


@pytest.fixture(params=UNITS, ids=lambda path: path.name)
def unit(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def read(unit: Path) -> configparser.SectionProxy:
    """Return the service's section of a unit."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return parser["Service"]


def test_a_unit_starts_a_command_that_is_ours(unit: Path) -> None:
    program, *arguments = read(unit)["ExecStart"].split()
    assert program.endswith("/bin/shmcache")
    parses(arguments)


def test_a_units_settings_are_ours(unit: Path) -> None:
    names = re.findall(r"^Environment=(\w+)=", unit.read_text(), re.MULTILINE)
    assert names
    assert all(map(known, names))


def test_a_unit_lets_the_supervisor_end_its_processes_in_order(unit: Path) -> None:
    service = read(unit)
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed", "or systemd would end the syncers together with the workers"
    assert service["OOMPolicy"] == "continue"
    assert "DynamicUser" not in service, "it removes the shared memory at the stop"
    assert int(service["WatchdogSec"]) > 2 * load_settings().stopped_wait, "the loop may wait so long for a lock"


def test_a_worker_that_cannot_start_is_not_tried_for_ever() -> None:
    assert read(DEPLOY / "shmcache-supervise.service")["RestartPreventExitStatus"] == str(CannotStart.exit_status)
    assert "HUP" in read(DEPLOY / "shmcache-supervise.service")["ExecReload"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here: part of systemd")
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "shmcache"
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/shmcache/.venv/bin/shmcache", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("KillMode=mixed", "KillMode=misspelt"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "misspelt" in done.stderr, "it would have told"


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and what they are given."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def test_every_command_in_the_dockerfile_is_one() -> None:
    steps = instructions()
    assert steps[0][0] == "FROM"
    names = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "ENV", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} == names
    for command in (part for name, given in steps if name == "RUN" for part in given.split("&&")):
        program = command.split()[0]
        # pip comes with the image; here it is the virtual environment's.
        assert shutil.which(program) or (Path(sys.executable).parent / program).exists(), program
    last = dict(steps)
    assert json.loads(last["ENTRYPOINT"]) == ["shmcache"], "the first process, without a shell that swallows signals"
    parses(json.loads(last["CMD"]))
    check = json.loads(last["HEALTHCHECK"].partition(" CMD ")[2])
    assert check[0] == "shmcache"
    parses(check[1:])


def test_the_image_runs_as_its_own_user_with_settings_of_ours_from_files_that_are_here() -> None:
    last = dict(instructions())
    assert last["USER"] == "shmcache"
    settings = dict(pair.split("=", 1) for pair in last["ENV"].split())
    assert all(map(known, settings))
    load_settings(**{name.removeprefix("SHMCACHE_").lower(): value for name, value in settings.items()})
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "--shm-size" in (DEPLOY / "Dockerfile").read_text(), "an image cannot say it, so its user is told"
    assert last["COPY"] == ". /src"
    assert (ROOT / "pyproject.toml").exists()


def test_compose_gives_the_arena_its_room_and_its_time() -> None:
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    workers = services["workers"]
    arena = load_settings(arena_size=workers["environment"]["SHMCACHE_ARENA_SIZE"]).arena_size
    assert size(workers["shm_size"]) >= int(arena)
    assert workers["stop_grace_period"] == "2m", "Docker's 10 s would cut the drain off"
    assert (DEPLOY / workers["build"]["context"] / workers["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert all(map(known, workers["environment"]))
    parses(workers["command"])
    assert set(workers["depends_on"]) <= set(services)


def test_the_pod_has_memory_for_the_arena_and_its_sidecar_ends_last() -> None:
    deployment: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    pod = template["spec"]
    assert pod["shareProcessNamespace"] is True, "an arena is refused in another pid namespace"
    assert pod["securityContext"]["runAsUser"] == 10001
    assert "useradd --system --uid 10001" in (DEPLOY / "Dockerfile").read_text()
    (volume,) = pod["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    (sidecar,), (workers,) = pod["initContainers"], pod["containers"]
    assert sidecar["restartPolicy"] == "Always", "so an init container is a sidecar"
    for container in (sidecar, workers):
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        settings = {each["name"]: each for each in container["env"]}
        assert all(map(known, settings))
        assert "value" not in settings["SHMCACHE_DATABASE_URL"], "it is a secret"
        arena = int(load_settings(arena_size=settings["SHMCACHE_ARENA_SIZE"]["value"]).arena_size)
    room = size(volume["emptyDir"]["sizeLimit"])
    assert arena <= room <= size(sidecar["resources"]["requests"]["memory"])
    parses(sidecar["args"])
    for probe in ("startupProbe", "readinessProbe"):
        command = sidecar[probe]["exec"]["command"]
        assert command[0] == "shmcache"
        parses(command[1:])
    assert pod["terminationGracePeriodSeconds"] > 30, "the default would cut a drain off"
