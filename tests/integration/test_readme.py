"""What the README says is tried: each of its blocks and commands is run or checked, and none is left out."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict

from shmcache import errors
from shmcache.arena import Arena, Ring, list_arenas
from shmcache.arena.layout import ENTRY_WORDS, INTENT_PAIRS, WORD, plan
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.database.migrate import identity, migrate
from shmcache.errors import DatabaseUnavailable
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus
from shmcache.setting_layers import CONFIG
from syncer.sync_manager import SyncManager
from tests.integration.pooler import Pooler
from tests.integration.readme import Block, blocks, command_lines, inline_commands, parse, variants
from tests.integration.test_clients import SINK, small_graph
from tests.integration.test_dead_letters import orphans
from tools.cli import cli
from tools.doctor.examination import examine
from tools.doctor.host import Host
from tools.signals import ENDING, OPERATING
from tools.supervisor import _SYNCERS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

RUN_ELSEWHERE = {
    "tools/dev run": "test_the_table_it_shows_has_the_rows_of_a_run",
    "tools/dev test": "this is one of them",
    "old/bin/shmcache drain NAME": "test_upgrade.py",
    "new/bin/shmcache run --arena NAME": "test_upgrade.py",
    "from shmcache.reader import Reader": "test_reader.py",
    "shmcache submit FILE... --broker URL": "test_celery.py",
    "shmcache status RUN [--wait=60]": "test_celery.py",
    "shmcache cancel RUN": "test_celery.py",
    "executor.py": "test_the_platform_s_executor_runs_as_it_is_printed",
}
"""Commands of blocks that are not run in `test_each_command_of_a_block_runs`, and blocks that no test here runs: what
runs them."""

# Blocks


def test_no_block_is_left_out() -> None:
    for block in blocks():
        if block.language == "python":
            name = block.text.splitlines()[0].removeprefix("# ")
            assert name in EXAMPLES or name in RUN_ELSEWHERE, f"{block}: no test runs it"
        elif block.language == "sh":
            assert all(list(variants(line, VALUES)) for line in command_lines(block))
        else:
            assert [marker for marker in SHAPES if marker in block.text], f"{block}: no test looks at it"


def _block(marker: str) -> Block:
    (found,) = (each for each in blocks() if marker in each.text)
    return found


def python(arguments: list[str], directory: Path, **environment: str) -> str:
    """Run Python in a directory; return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_STATE_DIR": str(directory), **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(pattern: str) -> str:
    """Return what the README says in the place of a pattern's group."""
    match = re.search(pattern, README)
    assert match is not None, f"the README does not say {pattern}"
    return match[1]


def worker(name: str, database_url: str, directory: Path) -> None:
    """Run a worker by the command that stands by it; each of the two prints what the first is said to print."""
    module = name.removesuffix(".py")
    command = said(rf"`tools/dev (supervise {module}:work --workers 2)`")
    arguments = ["-m", "tools.cli", *command.split(), "--arena", f"readme-{os.getpid()}"]
    printed = python(arguments, directory, SHMCACHE_DATABASE_URL=database_url)
    assert printed.count(said("each prints `(.*?)`")) == 2


def shared_dict(name: str, database_url: str, directory: Path) -> None:
    """Run the example of a dict, under a name of this test's own."""
    arena = f"readme-sessions-{os.getpid()}"
    source = directory / name
    source.write_text(source.read_text().replace('"sessions"', f'"{arena}"'))
    assert python([name], directory).strip() == said("It prints `(.*?)`")
    assert arena not in list_arenas()


def reading(name: str, database_url: str, directory: Path) -> None:
    """Run the example of a reader on a run that has ended, and was carried, on a host that it knows nothing of."""
    user = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, *small_graph())
        queries.create_account(connection, user, 100)
    arena = Arena.create(f"readme-reading-{os.getpid()}", 16 << 20)
    try:
        with CachedClient(arena, database_url, load_settings(state_dir=directory)) as client:
            run = client.create_graph_execution(small_graph()[0].id, user).id
            client.update_graph_execution_stats(run, ExecutionStatus.RUNNING)
            client.update_graph_execution_stats(run, ExecutionStatus.COMPLETED)
            watermark = client.watermark
        SyncManager(arena, database_url, load_settings(state_dir=directory)).run_once()
        printed = python([name, database_url, run, watermark], directory)
    finally:
        arena.close()
        arena.unlink()
    assert printed.strip() == said("It prints `(COMPLETED)` when a run")


EXAMPLES: dict[str, Callable[[str, str, Path], None]] = {
    "my_worker.py": worker,
    "async_worker.py": worker,
    "shared.py": shared_dict,
    "reading.py": reading,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_it_is_printed_and_prints_what_it_says(name: str, database_url: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(_block(f"# {name}\n").text)
    EXAMPLES[name](name, database_url, tmp_path)


def table_of_a_run(block: Block, tmp_path: Path, database_url: str) -> None:
    """The table has the rows of a run, and no others."""
    summary = json.loads(python(["-m", "tools.cli", "run", "--json"], tmp_path, SHMCACHE_DATABASE_URL=database_url))
    shown = [row.strip() for row in re.findall(r"^│ ([a-z ]+?) *│", block.text, re.MULTILINE)]
    assert shown == [name.replace("_", " ") for name in summary]


def picture(block: Block, *_: object) -> None:
    """The picture has as many syncers and pool processes as there are, and is drawn straight."""
    assert f"| syncer  | x {_SYNCERS}" in block.text
    assert f"pool of {Settings.model_fields['charge_workers'].default}" in block.text
    for word in ("work queue", "locks", "write ring", "charge ring", "table", "slabs", "PostgreSQL"):
        assert word in block.text
    assert max(map(len, block.text.splitlines())) < 120


def arithmetic(block: Block, *_: object) -> None:
    """The formulas' figures are those of the table above them, and give what the example says."""
    rows = re.findall(r"^\| ([a-z ]+) \| (?:about )?(\d+/\d+) \| ([0-9.]+) KiB", README, re.MULTILINE)
    kib = {part: float(size) for part, _, size in rows}
    shares = {part: float(Fraction(share)) for part, share, _ in rows}
    assert f"rate x ({kib['write ring']} + data)" in block.text
    assert f"x ({kib['records']} + data)" in block.text
    layout = plan(256 << 20)
    assert shares["write ring"] == layout.write_ring_size / layout.size
    assert shares["charge ring"] == layout.charge_ring_size / layout.size
    assert shares["records"] == pytest.approx(layout.slab_count * layout.slab_size / layout.size, rel=0.02)
    rate, data = map(int, re.findall(r"^(\d+) a second with (\d+) KiB each, and a minute", README, re.MULTILINE)[0])
    ring, arena = map(int, re.findall(r"a ring of (\d+) MiB, an arena of (\d+) MiB", README)[0])
    assert ring == round(rate * (kib["write ring"] + data) * 60 / 1024)
    assert arena == pytest.approx(8 * rate * (kib["write ring"] + data) * 60 / 1024, rel=0.01)


def settings_in_three_places(block: Block, directory: Path, _database_url: str) -> None:
    """Each place that is shown sets what it says, and the later ones weigh more."""
    in_environment, in_file, on_the_command_line = (re.split(r" {2,}", line)[0] for line in block.text.splitlines())
    name, value = shlex.split(in_environment)[0].split("=")
    file = directory / "config.toml"
    file.write_text(in_file.replace("5 s", "6 s"))
    setting = name.removeprefix("SHMCACHE_").lower()

    def holds(*arguments: str, **environment: str) -> tuple[object, str]:
        printed = python(["-m", "tools.cli", "config", "--json", *arguments], directory, **environment)
        found = json.loads(printed)["settings"][setting]
        return found["value"], found["source"]

    assert holds(**{name: value}) == (5.0, "environment")
    assert holds("--config", str(file), **{name: value}) == (6.0, "file")
    assert holds("--config", str(file), *on_the_command_line.split(), **{name: value}) == (5.0, "command line")


def pooler(_block_at_hand: Block, _directory: Path, database_url: str) -> None:
    """Start a pooler with the lines of the one block, give the settings of the other; it is one that we can use."""
    name = conninfo_to_dict(database_url)["dbname"]
    orders = (
        _block("ALTER ROLE app").text.replace("ROLE app", "ROLE postgres").replace("DATABASE app", f'DATABASE "{name}"')
    )
    with Pooler(database_url) as started:
        assert set(_block("pool_mode").text.splitlines()[1:]) <= set(started.configuration.splitlines())
        with pytest.raises(DatabaseUnavailable):
            connect(started.url, application_name="test")
    with connect(database_url, application_name="test") as connection:
        connection.execute(orders.encode())
    with Pooler(database_url) as started, connect(started.url, application_name="test") as connection:
        migrate(connection)


SHAPES: dict[str, Callable[[Block, Path, str], None]] = {
    "shmcache run  ": table_of_a_run,
    "| arena   table": picture,
    "write ring = rate x": arithmetic,
    "--set sync_interval=5s": settings_in_three_places,
    "pool_mode = transaction": pooler,
    "ALTER ROLE app": pooler,
}
"""Blocks that are no code and no commands: what looks whether they are still true."""


@pytest.mark.parametrize("marker", SHAPES)
def test_what_is_shown_has_the_shape_of_the_real_thing(marker: str, tmp_path: Path, database_url: str) -> None:
    SHAPES[marker](_block(marker), tmp_path, database_url)


def test_a_node_execution_takes_the_room_that_the_table_says(database_url: str, tmp_path: Path) -> None:
    graph, nodes = small_graph()
    user, count, data = new_id(), 500, 1000
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
        queries.create_account(connection, user, 10**9)
    with Arena.create(f"readme-sizes-{os.getpid()}", 32 << 20) as arena:
        arena.unlink()
        client = CachedClient(arena, database_url, load_settings(state_dir=tmp_path))
        client.get_credits(user)
        run = client.create_graph_execution(graph.id, user).id
        records = 0

        def used(ring: Ring) -> int:
            return ring.used_bytes

        before = used(arena.write_ring), used(arena.charge_ring)
        for _ in range(count):
            execution, _ = client.upsert_execution_input(SINK, run, "left", "x" * (data // 2))
            client.put_work(WorkKind.RUN, execution, run)
            work = client.take_work(1.0)
            assert work is not None
            client.charge_usage(
                client.update_node_execution_status(execution, ExecutionStatus.RUNNING),
                client.increment_execution_count(user, execution),
            )
            client.upsert_execution_output(execution, "out", "y" * (data // 2))
            client.update_node_execution_status(execution, ExecutionStatus.COMPLETED)
            client.end_work(work, run)
        after = used(arena.write_ring), used(arena.charge_ring)
        for found in client.get_node_executions(run):
            read = arena.read(bytes.fromhex(found.id.replace("-", "")))
            assert read is not None
            records += len(read.record) + ENTRY_WORDS * WORD
        client.close()
    measured = {
        "records": records / count - data,
        "write ring": (after[0] - before[0]) / count - data,
        "charge ring": (after[1] - before[1]) / count,
    }
    for part, taken in measured.items():
        assert taken / 1024 == pytest.approx(float(said(rf"\| {part} \| .* \| ([0-9.]+) KiB")), rel=0.25, abs=0.05)


# Commands

VALUES = {
    "NAME": "some-arena", "USER": new_id(), "AMOUNT": "5", "ID": "1", "KEY": new_id(), "FILE": "graph.json",
    "RUN": new_id(), "URL": "redis://127.0.0.1",
}  # fmt: skip


@pytest.mark.parametrize("line", [line for each in blocks() if each.language == "sh" for line in command_lines(each)])
def test_a_command_of_a_block_is_one_that_there_is(line: str) -> None:
    for arguments in variants(line, VALUES):
        if arguments != ["test"]:  # `tools/dev test`, which is pytest's
            parse(arguments, complete=True)


@pytest.mark.parametrize("line", sorted(set(inline_commands())))
def test_a_command_in_running_text_is_one_that_there_is(line: str) -> None:
    for arguments in variants(line, {**VALUES, "FILE": str(ROOT / "README.md")}):
        if arguments[0] == "test":  # what else there is goes to pytest
            assert all((ROOT / each).exists() for each in arguments[1:] if not each.startswith("-"))
        else:
            parse(arguments, complete=False)


@pytest.fixture
def prepared(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What the commands are tried on: an account, dead letters, an arena whose processes are dead."""
    monkeypatch.setenv("SHMCACHE_DATABASE_URL", database_url)
    monkeypatch.setenv("SHMCACHE_STATE_DIR", str(tmp_path))
    user, name = new_id(), f"readme-{os.getpid()}"
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, user, 1_000)
        database = identity(connection)
    with Arena.create(f"{name}-letters", 16 << 20) as letters:
        orphans(letters, database_url, tmp_path)
        letters.unlink()
    with connect(database_url, application_name="test") as connection:
        row = connection.execute("SELECT max(id) FROM dead_letters").fetchone()
    assert row is not None
    Arena.create(name, 16 << 20, database).close()
    yield {**VALUES, "NAME": name, "USER": user, "ID": str(row[0])}
    if name in list_arenas():
        Arena.attach(name).unlink()


@pytest.mark.parametrize("block", [each for each in blocks() if each.language == "sh"], ids=str)
def test_each_command_of_a_block_runs(block: Block, prepared: dict[str, str]) -> None:
    for line in command_lines(block):
        for arguments in variants(line, prepared) if line not in RUN_ELSEWHERE else ():
            result = CliRunner().invoke(cli, arguments, standalone_mode=False, input="y\n")
            assert result.exception is None, (arguments, result.output)
            refused_again = arguments[:2] == ["dead-letters", "replay"]
            assert result.return_value in ((1,) if refused_again else (None, 0)), (arguments, result.output)


def test_what_is_said_to_take_json_does() -> None:
    for block in blocks():
        if block.language == "sh" and README.split(block.text)[1].startswith("```\n\nAll take `--json`"):
            for line in command_lines(block):
                for arguments in variants(line, VALUES):
                    parse([*arguments, "--json"], complete=True)


def test_what_is_installed_by_pip_is_an_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install -e '\.\[(\w+)\]'", README)
    assert named
    assert set(named) <= set(extras)


# Names


def test_every_setting_that_is_named_is_one() -> None:
    known = set(re.findall(r"^\| `(SHMCACHE_\w+)` \|", README, re.MULTILINE))
    assert set(re.findall(r"SHMCACHE_\w+", README)) <= known | {CONFIG}


def test_every_link_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", README)) <= anchors


def test_every_file_that_is_named_is_there() -> None:
    for name in re.findall(r"`((?:shmcache|syncer|tools)/[\w/]+(?:\.\w+)?/?)`", README):
        assert (ROOT / name).exists(), name


def test_the_table_of_errors_has_each_with_what_its_class_says() -> None:
    section = README.split("\n## What an error means\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \| .+ \|$", section, re.MULTILINE))
    raised = {
        name: each
        for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, errors.ShmcacheError) and each is not errors.ShmcacheError
    }
    assert set(rows) == set(raised)
    for name, each in raised.items():
        sentence = re.match(r"(.*?\.)(\s|$)", inspect.getdoc(each) or "", re.DOTALL)
        assert sentence is not None
        assert rows[name] == " ".join(sentence[1].split())


def test_a_commit_changes_as_many_words_as_it_says() -> None:
    assert int(said("([0-9,]+) words of it").replace(",", "")) == INTENT_PAIRS


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


@pytest.mark.parametrize("table_set", ["autogpt"])
def test_the_platform_s_executor_runs_as_it_is_printed(new_database_url: Callable[[], str], tmp_path: Path) -> None:
    code = re.search(r"```python\n# executor.py\n(.*?)```", README, re.DOTALL)
    command = re.search(r"`shmcache (supervise executor:work --workers )4`", README)
    assert code is not None
    assert command is not None
    (tmp_path / "executor.py").write_text(code[1])
    url, graph, node, user = new_database_url(), new_id(), new_id(), new_id()
    with connect(url, application_name="platform") as connection:
        connection.execute('INSERT INTO "AgentGraph" (id, "userId") VALUES (%s, %s)', (graph, user))
        connection.execute(
            'INSERT INTO "AgentNode" (id, "agentBlockId", "agentGraphId") VALUES (%s, %s, %s)', (node, new_id(), graph)
        )
        connection.execute('INSERT INTO "UserBalance" VALUES (%s, 100, now())', (user,))
    plain = re.sub(r" options='[^']*'", "", url)
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", *command[1].split(), "1", "--arena", f"readme-platform-{os.getpid()}"],
        cwd=tmp_path,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_DATABASE_URL": plain, "SHMCACHE_SCHEMA": "autogpt",
            "SHMCACHE_STATE_DIR": str(tmp_path), "GRAPH_ID": graph, "NODE_ID": node, "USER_ID": user,
        },
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'result': [42]} 95"
    with connect(url, application_name="test") as connection:
        row = connection.execute('SELECT balance FROM "UserBalance" WHERE "userId" = %s', (user,)).fetchone()
    assert row == (95,)


def test_the_table_of_signals_names_those_that_the_supervisor_takes() -> None:
    table = README.partition("| signal | what it does |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(SIG\w+)`", row.split(" | ")[0])}
    assert named == {number.name for number in ENDING | OPERATING}


def test_the_lines_for_other_servers_are_those_that_their_tests_run() -> None:
    table = README.partition("| server | line | where |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| [^|]+ \| `([^`]+)`", table, re.MULTILINE)
    tests = (ROOT / "tests" / "integration" / "test_foreign_servers.py").read_text()
    assert len(lines) == 4
    for line in lines:
        assert line.removesuffix("())") in tests
    assert "`@app.task(base=shmcache.contrib.celery.DurableTask)`" in README
    assert "from shmcache.contrib.celery import DurableTask" in tests
    assert "`SharedCache(durable=True)`" in README
    assert "SharedCache(durable=True)" in tests


def test_the_files_to_deploy_are_the_ones_it_names() -> None:
    table = README.partition("`tools/deploy/` has what to start from")[2].partition("\nProcesses that")[0]
    named = {name for name in re.findall(r"`([\w.-]+)`", table) if (ROOT / "tools" / "deploy" / name).exists()}
    assert named == {path.name for path in (ROOT / "tools" / "deploy").iterdir() if "dockerignore" not in path.name}
