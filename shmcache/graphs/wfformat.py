"""Recorded workflows in WfFormat 1.5, the JSON format of WfCommons (Pegasus, Makeflow, Nextflow and others).

What is read of a file, everything else in it being left alone::

    {
      "name": "...",                                      optional
      "schemaVersion": "1.5",
      "workflow": {
        "specification": {
          "tasks": [{"id": "a",                           unique
                     "name": "...",                       optional, the id if absent
                     "parents": ["..."], "children": ["..."],
                     "inputFiles": ["..."], "outputFiles": ["..."]}],
          "files": [{"id": "...", "sizeInBytes": 1}]      optional
        },
        "execution": {                                    optional
          "tasks": [{"id": "a", "runtimeInSeconds": 1.5,
                     "command": {"program": "...", "arguments": ["..."]}}]
        }
      }
    }

Every task becomes a node of the block `shmcache.replay_task`, named by the task's id. Its definition is the constant
`task`: id, name, command, runtime_seconds as recorded, seconds to sleep (that times the time scale), input_files with
sizes, and outputs. What is not recorded (a command, a runtime, a size) is null there, and a task without a runtime
does not sleep.

For each edge from a parent to a child there is a link for each file that the child takes from that parent, from the
output to the input named by the file; where the edge shares no file, a control link from the output "done" to the
input "after:<parent>". Where a child takes the same file from several parents, each has an input of its own, "<file>
from <parent>"; a name that is taken already gets " (2)" and so on. So every input of a task is fed exactly once and
every task runs exactly once. A task without parents starts with the input `start`, which lists its files.

An edge may be given by the parent's `children`, by the child's `parents`, or by both; a file whose tasks have only one
of the two lists filled in is understood. Where both are filled in they must agree. Files listed twice count once; of
several sizes for one file the first counts. The edges must not form a cycle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shmcache.graphs.document import Spot, shown
from shmcache.graphs.draft import Draft, DraftLink, DraftNode
from shmcache.graphs.structure import cycles

SCHEMA_VERSION = "1.5"
REPLAY_BLOCK = "shmcache.replay_task"


class _Task(NamedTuple):
    spot: Spot
    name: str
    parents: dict[str, Spot] | None
    children: dict[str, Spot] | None
    input_files: tuple[str, ...]
    output_files: tuple[str, ...]


class _Recording(NamedTuple):
    command: dict[str, Any] | None
    runtime_seconds: int | float | None
    spot: Spot


def draft_of_wfformat(document: Spot, time_scale: float) -> Draft:
    """Return the checked content of a WfFormat file, runtimes multiplied by `time_scale`. Raises GraphFileError."""
    if document["schemaVersion"].text() != SCHEMA_VERSION:
        found = shown(document["schemaVersion"].value)
        document["schemaVersion"].fail(f"expected WfFormat {SCHEMA_VERSION!r}, got {found}")
    specification = document["workflow"]["specification"]
    tasks = _read_tasks(specification)
    sizes = _read_sizes(specification)
    recordings = _read_recordings(document["workflow"])
    parents = _parents(tasks)
    _refuse_cycles(tasks, parents)
    links, dones = _link(tasks, parents)
    nodes = [
        DraftNode(task_id, REPLAY_BLOCK, {}, {"task": _definition(task_id, task, recordings, sizes, time_scale)})
        for task_id, task in tasks.items()
    ]
    for node in nodes:
        if node.name in dones:
            node.constants["task"]["done"] = dones[node.name]
    starts = {
        task_id: {"start": {"files": _with_sizes(task.input_files, sizes)}}
        for task_id, task in tasks.items()
        if not parents[task_id]
    }
    name = document["name"].name() if "name" in document else "workflow"
    return Draft(name, nodes, links, starts)


def _read_tasks(specification: Spot) -> dict[str, _Task]:
    tasks: dict[str, _Task] = {}
    for spot in specification["tasks"].items():
        task_id = spot["id"].name()
        if task_id in tasks:
            spot["id"].fail(f"{shown(task_id)} is the id of {tasks[task_id].spot.place} too")
        tasks[task_id] = _Task(
            spot,
            spot["name"].text() if "name" in spot else task_id,
            _named(spot, "parents"),
            _named(spot, "children"),
            tuple(_named(spot, "inputFiles") or ()),
            tuple(_named(spot, "outputFiles") or ()),
        )
    if not tasks:
        specification["tasks"].fail("a workflow needs at least one task")
    return tasks


def _named(spot: Spot, key: str) -> dict[str, Spot] | None:
    """Return the names in a list, each once, with their places; None if there is no list."""
    if key not in spot:
        return None
    names: dict[str, Spot] = {}
    for item in spot[key].items():
        names.setdefault(item.name(), item)
    return names


def _read_sizes(specification: Spot) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spot in specification["files"].items() if "files" in specification else ():
        file = spot["id"].name()
        if "sizeInBytes" in spot:
            size = spot["sizeInBytes"].number()
            if size != int(size) or size >= 2**63:
                spot["sizeInBytes"].fail(f"expected a whole number below 2**63, got {shown(size)}")
            sizes.setdefault(file, int(size))
    return sizes


def _read_recordings(workflow: Spot) -> dict[str, _Recording]:
    recordings: dict[str, _Recording] = {}
    if "execution" not in workflow or "tasks" not in workflow["execution"]:
        return recordings
    for spot in workflow["execution"]["tasks"].items():
        task_id = spot["id"].name()
        if task_id in recordings:
            spot["id"].fail(f"{shown(task_id)} is the id of {recordings[task_id].spot.place} too")
        runtime = None
        if "runtimeInSeconds" in spot:
            runtime = spot["runtimeInSeconds"].number()
            spot["runtimeInSeconds"].storable()
        recordings[task_id] = _Recording(_read_command(spot), runtime, spot)
    return recordings


def _read_command(spot: Spot) -> dict[str, Any] | None:
    if "command" not in spot:
        return None
    command = spot["command"]
    return {
        "program": command["program"].text() if "program" in command else None,
        "arguments": [item.text() for item in command["arguments"].items()] if "arguments" in command else [],
    }


def _parents(tasks: dict[str, _Task]) -> dict[str, list[str]]:
    """Return each task's parents, from whichever lists the file fills in. Raises GraphFileError where they disagree."""
    found: dict[str, dict[str, None]] = {task_id: {} for task_id in tasks}
    parents_given = any(task.parents for task in tasks.values())
    children_given = any(task.children for task in tasks.values())
    for task_id, task in tasks.items():
        for parent, spot in (task.parents or {}).items():
            if parent not in tasks:
                spot.fail(f"there is no task {shown(parent)}")
            stated = tasks[parent].children
            if children_given and stated is not None and task_id not in stated:
                spot.fail(f"task {shown(parent)} does not have {shown(task_id)} among its children")
            found[task_id][parent] = None
    for task_id, task in tasks.items():
        for child, spot in (task.children or {}).items():
            if child not in tasks:
                spot.fail(f"there is no task {shown(child)}")
            stated = tasks[child].parents
            if parents_given and stated is not None and task_id not in stated:
                spot.fail(f"task {shown(child)} does not have {shown(task_id)} among its parents")
            found[child][task_id] = None
    return {task_id: list(parents) for task_id, parents in found.items()}


def _refuse_cycles(tasks: dict[str, _Task], parents: dict[str, list[str]]) -> None:
    for cycle in cycles(parents):
        tasks[cycle[0]].spot.fail(f"this task is its own ancestor, by {shown(' <- '.join(cycle))}")


def _link(tasks: dict[str, _Task], parents: dict[str, list[str]]) -> tuple[list[DraftLink], dict[str, str]]:
    """Return all links, and the name of the control output for each task that has one."""
    links: list[DraftLink] = []
    dones: dict[str, str] = {}
    for task_id, task in tasks.items():
        wanted = set(task.input_files)
        shared = {each: [file for file in tasks[each].output_files if file in wanted] for each in parents[task_id]}
        makers: dict[str, int] = {}
        for files in shared.values():
            for file in files:
                makers[file] = makers.get(file, 0) + 1
        taken = {"task", "start"}
        for parent, files in shared.items():
            for file in files:
                pin = _free_name(file if makers[file] == 1 else f"{file} from {parent}", taken)
                links.append(DraftLink(parent, file, task_id, pin))
            if not files:
                if parent not in dones:
                    dones[parent] = _free_name("done", set(tasks[parent].output_files))
                links.append(DraftLink(parent, dones[parent], task_id, _free_name(f"after:{parent}", taken)))
    return links, dones


def _free_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or with a number if it is taken; and take it."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted} ({number})"
    taken.add(name)
    return name


def _definition(
    task_id: str, task: _Task, recordings: dict[str, _Recording], sizes: dict[str, int], time_scale: float
) -> dict[str, Any]:
    recording = recordings.get(task_id)
    runtime = recording.runtime_seconds if recording else None
    seconds = (runtime or 0) * time_scale
    if recording and not seconds <= 1e9:
        recording.spot["runtimeInSeconds"].fail(f"{shown(runtime)} times the time scale is longer than 1e9 seconds")
    return {
        "id": task_id,
        "name": task.name,
        "command": recording.command if recording else None,
        "runtime_seconds": runtime,
        "seconds": seconds,
        "input_files": _with_sizes(task.input_files, sizes),
        "outputs": [{"name": file, "file": file, "sizeInBytes": sizes.get(file)} for file in task.output_files],
    }


def _with_sizes(files: tuple[str, ...], sizes: dict[str, int]) -> list[dict[str, Any]]:
    return [{"file": file, "sizeInBytes": sizes.get(file)} for file in files]
