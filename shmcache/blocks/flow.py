"""Blocks that move values through a graph."""

from __future__ import annotations

from shmcache.blocks.block import Block, Cost, Inputs, Outputs
from shmcache.blocks.checks import list_of, text_of, value_of
from shmcache.errors import BlockError


class Input(Block):
    """Brings a value into the graph.

    In a graph file, `name` says which entry of the file's "input" becomes `value`; a `value` among its defaults
    stands in where the file gives none. Yields `value`."""

    id = "shmcache.input"
    inputs = ("name", "value")
    outputs = ("value",)
    cost = Cost(0, "run")

    def run(self, inputs: Inputs) -> Outputs:
        """Return the value."""
        return [("value", value_of(self, inputs, "value"))]


class Output(Block):
    """Marks a value as a result of the graph: its executions' `value` outputs are what the run was for.

    `name` labels it. Yields `value`."""

    id = "shmcache.output"
    inputs = ("name", "value")
    outputs = ("value",)
    cost = Cost(0, "run")

    def run(self, inputs: Inputs) -> Outputs:
        """Return the value."""
        return [("value", value_of(self, inputs, "value"))]


class Constant(Block):
    """Yields its `value`; once at the start, or, with `trigger` linked, each time something comes there."""

    id = "shmcache.constant"
    inputs = ("value", "trigger")
    outputs = ("value",)
    cost = Cost(0, "run")

    def run(self, inputs: Inputs) -> Outputs:
        """Return the value."""
        return [("value", value_of(self, inputs, "value"))]


class ListIteration(Block):
    """Yields one `item` for each item of the list `items`, in order."""

    id = "shmcache.list_iteration"
    inputs = ("items",)
    outputs = ("item",)

    def run(self, inputs: Inputs) -> Outputs:
        """Return the items."""
        return [("item", item) for item in list_of(self, inputs, "items")]


class Merge(Block):
    """Waits for all its inputs, of whatever names, and yields them as one object, `merged`."""

    id = "shmcache.merge"
    inputs = ("*",)
    outputs = ("merged",)

    def run(self, inputs: Inputs) -> Outputs:
        """Return the object, its keys sorted."""
        return [("merged", {name: inputs[name] for name in sorted(inputs)})]


class Raise(Block):
    """Fails its execution with the text `message`. `value` is there to be linked to, so that it runs on a condition."""

    id = "shmcache.raise"
    inputs = ("message", "value")
    outputs = ()

    def run(self, inputs: Inputs) -> Outputs:
        """Raise BlockError."""
        raise BlockError(text_of(self, inputs, "message", "the graph asked for a failure"))
