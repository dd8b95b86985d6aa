"""Which blocks there are, and how an id becomes a block.

Nothing is imported before it is asked for: a built-in block's module is imported when a graph first names the block,
an entry point when its name is asked for, an import path when a graph says it.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from shmcache.blocks.block import Block, Cost
from shmcache.errors import UnknownBlock

ENTRY_POINT_GROUP = "shmcache.blocks"

_BUILT_IN = {
    "shmcache.arithmetic": "shmcache.blocks.expression:Arithmetic",
    "shmcache.condition": "shmcache.blocks.expression:Condition",
    "shmcache.constant": "shmcache.blocks.flow:Constant",
    "shmcache.delay": "shmcache.blocks.waiting:Delay",
    "shmcache.http_request": "shmcache.blocks.http_request:HttpRequest",
    "shmcache.input": "shmcache.blocks.flow:Input",
    "shmcache.json_path": "shmcache.blocks.json_path:JsonPath",
    "shmcache.list_iteration": "shmcache.blocks.flow:ListIteration",
    "shmcache.merge": "shmcache.blocks.flow:Merge",
    "shmcache.output": "shmcache.blocks.flow:Output",
    "shmcache.raise": "shmcache.blocks.flow:Raise",
    "shmcache.regular_expression": "shmcache.blocks.regular_expression:RegularExpression",
    "shmcache.replay_task": "shmcache.blocks.waiting:ReplayTask",
    "shmcache.text_template": "shmcache.blocks.text_template:TextTemplate",
}

_registered: dict[str, type[Block]] = {}
_made: dict[str, Block] = {}

BlockClass = TypeVar("BlockClass", bound=type[Block])


def register(block_class: BlockClass) -> BlockClass:
    """Make a block known under its id in this process; return the class, so that it can be used as a decorator.

    Call it before the workers are forked. Raises TypeError for what is no complete Block, ValueError for an id that
    another block has."""
    problem = _problem_with(block_class)
    if problem:
        raise TypeError(f"{block_class!r} cannot be registered: {problem}")
    block_id = getattr(block_class, "id", None)
    if not isinstance(block_id, str) or not block_id:
        raise TypeError(f"{block_class!r} cannot be registered: its id is no text")
    if block_id in _BUILT_IN or _registered.get(block_id, block_class) is not block_class:
        raise ValueError(f"a block with the id {block_id!r} is there already")
    _registered[block_id] = block_class
    _made.pop(block_id, None)
    return block_class


def get_block(block_id: str) -> Block:
    """Return the block of this id: a registered one, a built-in one, an entry point's, or "package.module:ClassName".

    The same object every time in a process. Raises UnknownBlock, with what went wrong as its cause, where there is
    none, its import fails, or what is imported is no complete Block."""
    block = _made.get(block_id)
    if block is None:
        block = _made[block_id] = _make(block_id)
    return block


def forget_imported() -> None:
    """Forget the blocks that do not come with shmcache, and the packages that they are in: they are imported anew."""
    classes = [*_registered.values(), *(type(block) for block in _made.values())]
    packages = {each.__module__.partition(".")[0] for each in classes} - {"shmcache", "__main__"}
    for name in [each for each in sys.modules if each.partition(".")[0] in packages]:
        del sys.modules[name]
    _registered.clear()
    _made.clear()


def known_blocks() -> tuple[str, ...]:
    """Return the ids of all blocks that are built in, registered, or named by an installed entry point, sorted."""
    return tuple(sorted({*_BUILT_IN, *_registered, *(point.name for point in _entry_points())}))


def _make(block_id: str) -> Block:
    try:
        block_class = _find(block_id)
        problem = _problem_with(block_class)
        if problem:
            raise TypeError(problem)
        block: Block = block_class()
    # Someone else's module may raise anything while it is imported, and leave by sys.exit.
    except (Exception, SystemExit) as error:
        raise UnknownBlock(block_id) from error
    return block


def _find(block_id: str) -> Any:
    if block_id in _registered:
        return _registered[block_id]
    if block_id in _BUILT_IN:
        return _import(_BUILT_IN[block_id])
    for point in _entry_points():
        if point.name == block_id:
            return point.load()
    return _import(block_id)


def _import(path: str) -> Any:
    module, colon, name = path.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise LookupError("it is not built in, not registered, no entry point, and no import path")
    return getattr(import_module(module), name)


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINT_GROUP))


def _problem_with(block_class: Any) -> str | None:
    if not (isinstance(block_class, type) and issubclass(block_class, Block)):
        return "it is no subclass of shmcache.blocks.Block"
    if inspect.isabstract(block_class):
        return "it has no method run"
    for names in (block_class.inputs, block_class.outputs):
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            return "its inputs and outputs must be tuples of names"
    cost = block_class.cost
    if not isinstance(cost, Cost) or type(cost.amount) is not int or cost.per not in ("run", "second", "byte"):
        return "its cost must be a Cost of a whole number per run, second or byte"
    return None
