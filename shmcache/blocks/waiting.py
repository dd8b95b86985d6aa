"""Blocks that take time."""

from __future__ import annotations

from typing import Any

from shmcache.blocks.block import Block, Cost, Inputs, Outputs
from shmcache.blocks.checks import list_of, number_of, object_of, text_of, value_of
from shmcache.progress import sleep

LONGEST_SECONDS = 1e9


class Delay(Block):
    """Waits `seconds` (0 to a day), then yields `value` (null without one). Costs a credit a second, rounded up."""

    id = "shmcache.delay"
    inputs = ("seconds", "value")
    outputs = ("value",)
    cost = Cost(1, "second")

    def run(self, inputs: Inputs) -> Outputs:
        """Sleep, then return the value."""
        sleep(self.seconds(inputs))
        return [("value", inputs.get("value"))]

    def seconds(self, inputs: Inputs) -> float:
        """Return the seconds it is told to wait. Raises BlockError."""
        return number_of(self, inputs, "seconds", least=0, most=86_400)


class ReplayTask(Block):
    """Stands in for a recorded task of a scientific workflow: takes its time, then "makes" its output files.

    `task` describes it: `seconds` to sleep (0 or absent: none); `outputs`, a list of {"name", "file", "sizeInBytes"};
    `done`, the name of an output that says only that the task has ended, absent where nothing waits for it. Every other
    input is a file or a control signal from a task before it and is not looked at. Yields {"file", "sizeInBytes"} under
    each output's name, in order, then true under `done`."""

    id = "shmcache.replay_task"
    inputs = ("task", "*")
    outputs = ("*",)

    def run(self, inputs: Inputs) -> Outputs:
        """Sleep, then return the files."""
        task = object_of(self, inputs, "task")
        seconds = self.seconds(inputs)
        if seconds > 0:
            sleep(seconds)
        made_files: list[tuple[str, Any]] = []
        for output in list_of(self, {"task.outputs": task.get("outputs", [])}, "task.outputs"):
            made = object_of(self, {"task.outputs[]": output}, "task.outputs[]")
            file = {"file": value_of(self, made, "file"), "sizeInBytes": made.get("sizeInBytes")}
            made_files.append((text_of(self, made, "name"), file))
        if "done" in task:
            made_files.append((text_of(self, task, "done"), True))
        return made_files

    def seconds(self, inputs: Inputs) -> float:
        """Return the seconds the task is to take. Raises BlockError."""
        return number_of(self, object_of(self, inputs, "task"), "seconds", 0, least=0, most=LONGEST_SECONDS)
