"""WfFormat files: every task becomes a node that runs exactly once; what is refused, where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmcache.errors import GraphFileError
from shmcache.graphs import LoadedGraph, load_graph_file
from shmcache.records import NodeDefinition
from tests.unit.test_graph_files_interpreter import interpret

GRAPHS = Path(__file__).parents[1] / "graphs"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "wfformat"
RECORDED = {
    "helloworld-forkjoin-10-chameleon.json": (10, 16),
    "blast-chameleon-small-002.json": (43, 120),
    "rnaseq-dirt02-001.json": (197, 451),
    "1000genome-chameleon-10ch-100k-001.json": (260, 380),
    "epigenomics-chameleon-ilmn-3seq-100k-001.json": (405, 500),
}


def workflow(*tasks: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"name": "w", "schemaVersion": "1.5", "workflow": {"specification": {"tasks": list(tasks)}, **parts}}


def task(
    name: str, parents: str | None = "", children: str | None = "", takes: str = "", makes: str = ""
) -> dict[str, Any]:
    lists = {"parents": parents, "children": children, "inputFiles": takes, "outputFiles": makes}
    return {"id": name, **{key: names.split() for key, names in lists.items() if names is not None}}


def load(tmp_path: Path, document: Any, time_scale: float = 0.0) -> LoadedGraph:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(document))
    return load_graph_file(path, time_scale=time_scale)


def by_name(loaded: LoadedGraph) -> dict[str, NodeDefinition]:
    return {node.name: node for node in loaded.nodes}


def pins(loaded: LoadedGraph) -> set[tuple[str, str, str, str]]:
    names = {node.id: node.name for node in loaded.nodes}
    return {
        (names[link.source_node_id], link.source_name, names[link.sink_node_id], link.sink_name)
        for node in loaded.nodes
        for link in node.output_links
    }


def check_that_every_task_runs_once(loaded: LoadedGraph) -> None:
    for node in loaded.nodes:
        names = [link.sink_name for link in node.input_links]
        assert len(names) == len(set(names)), "an input is fed twice"
        assert bool(names) != (node.id in loaded.graph.starts), (
            "a task starts by itself and by its links, or by neither"
        )
    runs = interpret(loaded)
    assert Counter(run.node for run in runs) == Counter(node.name for node in loaded.nodes)
    for run in runs:
        assert len({name for name, _ in run.outputs}) == len(run.outputs)


@pytest.mark.parametrize("name", RECORDED)
def test_every_task_of_a_recorded_workflow_runs_once(name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    tasks, edges = RECORDED[name]
    loaded = load_graph_file(path)
    assert len(loaded.nodes) == tasks
    assert len({(source, sink) for source, _, sink, _ in pins(loaded)}) == edges
    check_that_every_task_runs_once(loaded)


def test_a_task_is_defined_by_what_was_recorded_of_it() -> None:
    loaded = load_graph_file(GRAPHS / "diamond.wfformat.json", time_scale=0.1)
    nodes = by_name(loaded)
    assert nodes["split"].block_id == "shmcache.replay_task"
    assert nodes["split"].constants == {
        "task": {
            "id": "split",
            "name": "split",
            "command": {"program": "split", "arguments": ["-n", "2", "all.txt"]},
            "runtime_seconds": 2.5,
            "seconds": 0.25,
            "input_files": [{"file": "all.txt", "sizeInBytes": 10}],
            "outputs": [
                {"name": "a.txt", "file": "a.txt", "sizeInBytes": 4},
                {"name": "done", "file": "done", "sizeInBytes": None},
            ],
            "done": "done (2)",
        }
    }
    assert nodes["join"].constants["task"]["command"] is None
    assert nodes["join"].constants["task"]["runtime_seconds"] is None
    assert loaded.graph.starts == {nodes["split"].id: {"start": {"files": [{"file": "all.txt", "sizeInBytes": 10}]}}}


def test_files_become_links_and_other_edges_control_links() -> None:
    loaded = load_graph_file(GRAPHS / "diamond.wfformat.json")
    assert pins(loaded) == {
        ("split", "a.txt", "left", "a.txt"),
        ("split", "done (2)", "right", "after:split"),
        ("left", "made.txt", "join", "made.txt from left"),
        ("right", "made.txt", "join", "made.txt from right"),
    }
    check_that_every_task_runs_once(loaded)


def test_the_default_time_scale_does_not_sleep() -> None:
    loaded = load_graph_file(GRAPHS / "diamond.wfformat.json")
    assert {node.constants["task"]["seconds"] for node in loaded.nodes} == {0}


def test_edges_may_be_given_by_one_side_only(tmp_path: Path) -> None:
    both = load(tmp_path, workflow(task("a", "", "b", "", "f"), task("b", "a", "", "f")))
    for one_side in (
        workflow(task("a", None, "b", "", "f"), task("b", None, None, "f")),
        workflow(task("a", None, None, "", "f"), task("b", "a", None, "f")),
        workflow(task("a", "", "b", "", "f"), task("b", "", "", "f")),
        workflow(task("a", "", "", "", "f"), task("b", "a", "", "f")),
        workflow(task("a", "", None, "", "f"), task("b", "a", "", "f")),
    ):
        assert load(tmp_path, one_side) == both


def test_files_and_edges_listed_twice_count_once(tmp_path: Path) -> None:
    loaded = load(tmp_path, workflow(task("a", "", "b b", "x x", "f f"), task("b", "a a", "", "f f")))
    assert pins(loaded) == {("a", "f", "b", "f")}
    check_that_every_task_runs_once(loaded)


def test_names_that_collide_are_kept_apart(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        workflow(
            task("a", "", "z", "", "task start f done"),
            task("b", "", "z", "", "after:c f"),
            task("c", "", "z", "", "done"),
            task("d", "", "z", "", "f"),
            task("z", "a b c d", "", "task start after:c f", ""),
        ),
    )
    check_that_every_task_runs_once(loaded)
    assert ("c", "done (2)", "z", "after:c (2)") in pins(loaded)
    assert ("a", "task", "z", "task (2)") in pins(loaded)


def test_a_task_with_neither_parent_nor_child_runs(tmp_path: Path) -> None:
    loaded = load(tmp_path, workflow(task("a"), task("b", makes="f"), {"id": "c"}))
    check_that_every_task_runs_once(loaded)
    assert len(loaded.graph.starts) == 3


def test_a_file_of_a_task_that_is_no_parent_makes_no_link(tmp_path: Path) -> None:
    loaded = load(tmp_path, workflow(task("a", makes="f"), task("b", takes="f")))
    assert pins(loaded) == set()


def test_what_was_not_recorded_is_null(tmp_path: Path) -> None:
    document = workflow(
        task("a", takes="f", makes="f"),
        execution={"tasks": [{"id": "a", "runtimeInSeconds": None, "command": {}}, {"id": "stranger"}]},
    )
    document["workflow"]["specification"]["files"] = [{"id": "f"}, {"id": "f", "sizeInBytes": 3.0}]
    defined = load(tmp_path, document, 1.0).nodes[0].constants["task"]
    assert (defined["runtime_seconds"], defined["seconds"]) == (None, 0)
    assert defined["command"] == {"program": None, "arguments": []}
    assert defined["outputs"] == [{"name": "f", "file": "f", "sizeInBytes": 3}]


def test_thousands_of_tasks_load_and_run(tmp_path: Path) -> None:
    chain = [
        task(f"t{n}", f"t{n - 1}" if n else "", f"t{n + 1}" if n < 2999 else "", f"f{n - 1}", f"f{n}")
        for n in range(3000)
    ]
    check_that_every_task_runs_once(load(tmp_path, workflow(*chain)))


def _diamond() -> Any:
    return json.loads((GRAPHS / "diamond.wfformat.json").read_text())


TASKS = "workflow.specification.tasks"
RUNS = "workflow.execution.tasks"


@pytest.mark.parametrize(
    ("path", "value", "place", "problem"),
    [
        ("schemaVersion", "1.4", "schemaVersion", "expected WfFormat '1.5', got '1.4'"),
        ("schemaVersion", 1.5, "schemaVersion", "expected text, got 1.5"),
        ("workflow", [], "workflow", "expected an object"),
        ("workflow", {}, "workflow", '"specification" is missing'),
        (TASKS, {}, TASKS, "expected a list"),
        (TASKS, [], TASKS, "at least one task"),
        (f"{TASKS}.1.id", "split", f"{TASKS}[1].id", "the id of workflow.specification.tasks[0] too"),
        (f"{TASKS}.1.id", None, f"{TASKS}[1].id", "expected text, got null"),
        (f"{TASKS}.1.id", "a\0", f"{TASKS}[1].id", "NUL"),
        (f"{TASKS}.1.parents", "split", f"{TASKS}[1].parents", "expected a list"),
        (f"{TASKS}.1.parents", ["nobody"], f"{TASKS}[1].parents[0]", "there is no task 'nobody'"),
        (f"{TASKS}.1.children", ["join", "nobody"], f"{TASKS}[1].children[1]", "there is no task 'nobody'"),
        (f"{TASKS}.1.children", [], f"{TASKS}[3].parents[0]", "'left' does not have 'join' among its children"),
        (f"{TASKS}.1.parents", [], f"{TASKS}[0].children[0]", "'left' does not have 'split' among its parents"),
        (f"{TASKS}.1.inputFiles", ["a", 3], f"{TASKS}[1].inputFiles[1]", "expected text, got 3"),
        (f"{TASKS}.1.name", 3, f"{TASKS}[1].name", "expected text"),
        ("workflow.specification.files.0.sizeInBytes", -1, "workflow.specification.files[0].sizeInBytes", "negative"),
        ("workflow.specification.files.0.sizeInBytes", "9", "workflow.specification.files[0].sizeInBytes", "a number"),
        ("workflow.specification.files.0.sizeInBytes", 1.5, "workflow.specification.files[0].sizeInBytes", "whole"),
        ("workflow.specification.files.0.id", "", "workflow.specification.files[0].id", "empty"),
        (f"{RUNS}.0.runtimeInSeconds", -0.5, f"{RUNS}[0].runtimeInSeconds", "not negative, got -0.5"),
        (f"{RUNS}.0.runtimeInSeconds", float("nan"), f"{RUNS}[0].runtimeInSeconds", "finite"),
        (f"{RUNS}.0.runtimeInSeconds", float("inf"), f"{RUNS}[0].runtimeInSeconds", "finite"),
        (f"{RUNS}.0.runtimeInSeconds", True, f"{RUNS}[0].runtimeInSeconds", "expected a number, got true"),
        (f"{RUNS}.0.runtimeInSeconds", 10**30, f"{RUNS}[0].runtimeInSeconds", "64 bits"),
        (f"{RUNS}.1.id", "split", f"{RUNS}[1].id", "too"),
        (f"{RUNS}.0.command", "split", f"{RUNS}[0].command", "expected an object"),
        (f"{RUNS}.0.command.arguments", [1], f"{RUNS}[0].command.arguments[0]", "expected text"),
        (f"{RUNS}.0.command.program", "a\0", f"{RUNS}[0].command.program", "NUL"),
        (f"{RUNS}.0.command.program", "\udfff", f"{RUNS}[0].command.program", "surrogate"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, path: str, value: Any, place: str, problem: str) -> None:
    document = _diamond()
    *parents, last = path.split(".")
    inner = document
    for part in parents:
        inner = inner[int(part) if part.isdigit() else part]
    inner[last] = value
    with pytest.raises(GraphFileError) as caught:
        load(tmp_path, document)
    assert caught.value.place == place
    assert problem in caught.value.problem
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_schema_version_is_refused(tmp_path: Path) -> None:
    document = _diamond()
    del document["schemaVersion"]
    with pytest.raises(GraphFileError, match='"schemaVersion" is missing'):
        load(tmp_path, document)


@pytest.mark.parametrize(
    "tasks", [[task("a", "a", "a")], [task("a", "b", "b"), task("b", "a", "a"), task("c")]], ids=["self", "pair"]
)
def test_any_cycle_is_refused(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    with pytest.raises(GraphFileError, match="its own ancestor") as caught:
        load(tmp_path, workflow(*tasks))
    assert caught.value.place == f"{TASKS}[0]"


def test_a_runtime_that_the_time_scale_makes_endless_is_refused(tmp_path: Path) -> None:
    document = workflow(task("a"), execution={"tasks": [{"id": "a", "runtimeInSeconds": 1e300}]})
    with pytest.raises(GraphFileError, match="longer than"):
        load(tmp_path, document, 1e10)


NAMES = st.sampled_from(["f", "g", "done", "task", "start", "after:t0", "f from t0", "after:t1", "done (2)"])


@st.composite
def workflows(draw: st.DrawFn) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """A random acyclic workflow and its edges, given by one side or both."""
    count = draw(st.integers(1, 7))
    edges = {
        (f"t{parent}", f"t{child}")
        for child in range(count)
        for parent in draw(st.sets(st.integers(0, child - 1), max_size=4) if child else st.just(set()))
    }
    sides = draw(st.sampled_from(["both", "parents", "children"]))
    tasks = []
    for number in range(count):
        name = f"t{number}"
        each: dict[str, Any] = {"id": name, "name": "n"}
        if sides != "children":
            each["parents"] = sorted(parent for parent, child in edges if child == name)
        if sides != "parents":
            each["children"] = sorted(child for parent, child in edges if parent == name)
        each["inputFiles"] = draw(st.lists(NAMES, max_size=5))
        each["outputFiles"] = draw(st.lists(NAMES, max_size=5))
        tasks.append(each)
    return workflow(*draw(st.permutations(tasks))), edges


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(generated=workflows())
def test_every_task_of_any_workflow_runs_once(
    tmp_path: Path, generated: tuple[dict[str, Any], set[tuple[str, str]]]
) -> None:
    document, edges = generated
    loaded = load(tmp_path, document)
    links = pins(loaded)
    assert {(source, sink) for source, _, sink, _ in links} == edges
    files = {each["id"]: each for each in document["workflow"]["specification"]["tasks"]}
    for parent, child in edges:
        shared = set(files[parent]["outputFiles"]) & set(files[child]["inputFiles"])
        outputs = [output for source, output, sink, _ in links if (source, sink) == (parent, child)]
        assert len(outputs) == max(1, len(shared))
        if shared:
            assert set(outputs) == shared
        else:
            assert outputs[0] not in files[parent]["outputFiles"]
    check_that_every_task_runs_once(loaded)


def _places(value: Any) -> list[Callable[[Any], None]]:
    """Return, for each place inside a JSON value, a function that puts something else there."""
    found: list[Callable[[Any], None]] = []
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append(partial(value.__setitem__, key))
        found += _places(value[key])
    return found


VALID = [path.read_bytes() for path in sorted(GRAPHS.glob("*.json"))]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["split", "left", "from"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_in_a_file_it_is_loaded_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(VALID))
    match data.draw(st.sampled_from(["flip", "truncate", "swap", "anything"])):
        case "flip":
            changed = bytearray(content)
            for _ in range(data.draw(st.integers(1, 4))):
                changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
            content = bytes(changed)
        case "truncate":
            content = content[: data.draw(st.integers(0, len(content)))]
        case "swap":
            document = json.loads(content)
            for _ in range(data.draw(st.integers(1, 2))):
                data.draw(st.sampled_from(_places(document)))(data.draw(ANYTHING))
                if not _places(document):
                    break
            content = json.dumps(document).encode()
        case "anything":
            content = data.draw(st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()))
    path = tmp_path / "any.json"
    path.write_bytes(content)
    refusal = ""
    try:
        load_graph_file(path, time_scale=0.01)
    except GraphFileError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) <= 1
