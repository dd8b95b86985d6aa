"""What a block is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

Inputs: TypeAlias = Mapping[str, Any]
"""What a block is given: a value for each input name."""

Outputs: TypeAlias = Iterable[tuple[str, Any]]
"""What a block yields: an output name and a value, as often as it likes.

A generator's outputs are handed on one by one, as they come. A list is handed on as a whole, and the execution ends in
the same step: faster for a block that has its outputs all at once."""

ANY = "*"
"""Among a block's input or output names: any other name too."""


class Cost(NamedTuple):
    """What a run of a block costs: `amount` credits a run, for each second it takes, or for each byte of its inputs and
    outputs. What cannot be known before is estimated, held, and settled when the run ends."""

    amount: int
    per: Literal["run", "second", "byte"]
    filter: Mapping[str, Any] | None = None
    """Inputs that this is the price for; None is for all. What is falsy here must be falsy or absent there; an object
    is a filter on the object there."""

    def is_for(self, inputs: Inputs) -> bool:
        """Say whether this is the price of a run with these inputs."""
        return self.filter is None or _matches(self.filter, inputs)


def _matches(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(given, Mapping):
        return all(_matches(value, given.get(name)) for name, value in wanted.items())
    return bool(wanted == given or (not wanted and not given))


class Block(ABC):
    """A kind of work that nodes do. Subclasses set the class attributes and write `run`.

    One object of each class serves all nodes of a process, so a block keeps no state between runs."""

    id: ClassVar[str]
    """The name graph files use. It is stored with every node: never rename it."""

    inputs: ClassVar[tuple[str, ...]] = ()
    """The names of its inputs; "*" among them stands for any name."""

    outputs: ClassVar[tuple[str, ...]] = ()
    """The names it yields; "*" among them stands for any name."""

    cost: ClassVar[Cost] = Cost(1, "run")

    costs: ClassVar[tuple[Cost, ...]] = ()
    """Prices that depend on the inputs: the first one that is for them. With none of them, `cost`."""

    @abstractmethod
    def run(self, inputs: Inputs) -> Outputs:
        """Do the work; yield (output name, value) pairs, or return a list of them.

        Values are JSON: text, numbers, booleans, None, lists, dicts. The caller hands in a deep copy of the node's
        values (`shmcache.frozen.thaw`), so a block may change them. Whatever it raises fails the node's execution;
        built-in blocks raise BlockError."""

    def may_cost_per(self, per: str) -> bool:
        """Say whether one of its prices is per run, second or byte."""
        return any(cost.per == per for cost in (self.cost, *self.costs))

    def cost_of(self, inputs: Inputs) -> Cost:
        """Return the price of a run with these inputs."""
        for cost in self.costs:
            if cost.is_for(inputs):
                return cost
        return self.cost

    def seconds(self, inputs: Inputs) -> float:  # noqa: ARG002
        """Return how many seconds a run with these inputs is expected to take: what a price per second holds.

        It must depend on the inputs alone, so that asking again gives the same estimate."""
        return 0.0


def accepts(names: tuple[str, ...], name: str) -> bool:
    """Say whether `name` is one of a block's input or output names."""
    return name in names or ANY in names
