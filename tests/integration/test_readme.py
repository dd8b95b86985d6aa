"""What the README says is tried: its settings, its example, its summary."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from shmcache.arena import list_arenas
from shmcache.config import Settings, load_settings
from tools.doctor.examination import examine
from tools.doctor.host import Host

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_settings_table_names_every_setting_with_its_default_and_meaning() -> None:
    rows = dict(re.findall(r"^\| `SHMCACHE_(\w+)` \| (.*) \|$", README, re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default, meaning = rows[name.upper()].split(" | ", 1)
        assert meaning == field.description
        if field.default_factory is None:
            said = "" if field.default is None else f"`{field.default:g}`" if isinstance(field.default, float) else None
            assert default.strip() == (f"`{field.default}`" if said is None else said)


def test_the_areas_of_the_doctor_are_those_that_it_looks_at(tmp_path: Path) -> None:
    section = README.split("## Does it run here?", 1)[1].split("\n## ", 1)[0]
    areas = examine(load_settings(state_dir=tmp_path, arena_size="4 MiB"), Host())
    assert ["settings", *re.findall(r"^\| ([\w ]+) \| \w.* \|$", section, re.MULTILINE)[1:]] == [
        area.name for area in areas
    ]


def test_the_worker_example_runs_as_it_is_printed(database_url: str, tmp_path: Path) -> None:
    code = re.search(r"```python\n# my_worker.py\n(.*?)```", README, re.DOTALL)
    assert code is not None
    (tmp_path / "my_worker.py").write_text(code[1])
    command = re.search(r"`tools/dev (supervise my_worker:work --workers 2)`", README)
    printed = re.search(r"each prints `(.*?)`", README)
    assert command is not None
    assert printed is not None
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", *command[1].split(), "--arena", f"readme-{os.getpid()}"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SHMCACHE_DATABASE_URL": database_url,
            "SHMCACHE_STATE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(printed[1]) == 2


def test_the_shared_dict_example_prints_what_it_says(tmp_path: Path) -> None:
    code = re.search(r"```python\n# shared.py\n(.*?)```", README, re.DOTALL)
    printed = re.search(r"It prints `(.*?)`", README)
    assert code is not None
    assert printed is not None
    name = f"readme-sessions-{os.getpid()}"
    (tmp_path / "shared.py").write_text(code[1].replace('"sessions"', f'"{name}"'))
    done = subprocess.run(
        [sys.executable, "shared.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == (printed[1], 0), done.stderr
    assert name not in list_arenas()


def test_the_table_it_shows_has_the_rows_of_a_run(database_url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", "run", "--json"],
        cwd=ROOT,
        env={**os.environ, "SHMCACHE_DATABASE_URL": database_url, "SHMCACHE_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = [row.strip() for row in re.findall(r"^│ ([a-z ]+?) *│", README, re.MULTILINE)]
    assert shown == [name.replace("_", " ") for name in json.loads(done.stdout)]
