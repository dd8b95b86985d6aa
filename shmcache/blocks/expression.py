"""The arithmetic and condition blocks, and the small language that they evaluate.

An expression is written in Python's syntax and has: numbers, text, True, False, None, lists, objects
({"a": 1, **b}), a node's inputs as variables, `object.key` and `object["key"]`, `list[0]`, + - * / // % **,
comparisons, `in`, and, or, not, `a if b else c`, list comprehensions, and the functions abs, ceil, float, floor, int,
len, max, min, round, sorted, sum. The operators but + work on numbers only; + joins texts and lists too.

It cannot reach anything else: no attributes of Python objects, no methods, no other functions. And it ends: at most
2,000 characters, whole numbers of at most 4,096 bits on the way, 10,000 steps in comprehensions, texts and lists of
100,000, 2 seconds of processor time (in a process's main thread).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

import simpleeval

from shmcache.blocks.block import Block, Inputs, Outputs
from shmcache.blocks.checks import check_result, processor_time, text_of
from shmcache.errors import BlockError

COMPUTING_SECONDS = 2.0
LONGEST_EXPRESSION = 2_000
MOST_BITS = 4_096


class Arithmetic(Block):
    """Evaluates `expression` with all its other inputs as variables; yields `result`.

    The language is described in this module's docstring: `round(invoice.amount * rate, 2)`."""

    id = "shmcache.arithmetic"
    inputs = ("expression", "*")
    outputs = ("result",)

    def run(self, inputs: Inputs) -> Outputs:
        """Return the result. Raises BlockError for an expression that cannot be evaluated, or to nothing JSON has."""
        return [("result", evaluate(self, inputs))]


class Condition(Block):
    """Evaluates `expression` as arithmetic does and takes one of two ways.

    Yields `value` (or, without that input, the object of all variables) as `yes` where the result is true, not 0 and
    not empty, and as `no` otherwise."""

    id = "shmcache.condition"
    inputs = ("expression", "value", "*")
    outputs = ("yes", "no")

    def run(self, inputs: Inputs) -> Outputs:
        """Return the value on the way taken. Raises BlockError for an expression that cannot be evaluated."""
        way = "yes" if evaluate(self, inputs) else "no"
        variables = {name: value for name, value in inputs.items() if name != "expression"}
        return [(way, variables.get("value", variables))]


def evaluate(block: Block, inputs: Inputs) -> Any:
    """Return the value of a block's input `expression`, its other inputs being variables. Raises BlockError."""
    expression = text_of(block, inputs, "expression", longest=LONGEST_EXPRESSION)
    variables = {name: value for name, value in inputs.items() if name != "expression"}
    try:
        with processor_time(block, COMPUTING_SECONDS):
            parsed = ast.parse(expression.strip(), mode="eval").body
            return check_result(block, _Evaluator(variables).eval(expression, parsed))
    except BlockError:
        raise
    # Any operation on values of the wrong type, and the parser on wrong text, fails in its own way.
    except Exception as error:
        reason = str(error) or "too deeply nested"
        raise BlockError(f"{block.id}: input 'expression': {type(error).__name__}: {reason}") from None


class _Evaluator(simpleeval.EvalWithCompoundTypes):  # type: ignore[misc]
    """simpleeval with the parts left out that can run away or reach into Python objects."""

    def __init__(self, variables: dict[str, Any]) -> None:
        super().__init__(operators=_OPERATORS, functions={}, names=variables)
        self.functions = dict(_FUNCTIONS)
        for kind in _LEFT_OUT:
            self.nodes.pop(kind, None)
        self.nodes[ast.Attribute] = self._key
        self.nodes[ast.Call] = self._call

    def _key(self, node: ast.Attribute) -> Any:
        value = self._eval(node.value)
        if not isinstance(value, dict) or node.attr not in value:
            raise LookupError(f"there is no .{node.attr}")
        return value[node.attr]

    def _call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise LookupError(f"the functions are {', '.join(sorted(_FUNCTIONS))}, without keywords")
        return _bounded(_FUNCTIONS[node.func.id](*(self._eval(argument) for argument in node.args)))


_LEFT_OUT = (ast.JoinedStr, ast.FormattedValue, ast.Set, ast.GeneratorExp, ast.DictComp, ast.Assign, ast.AugAssign)


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise OverflowError(f"a whole number of more than {MOST_BITS} bits")
    return value


def _on_numbers(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def checked(left: Any, right: Any) -> Any:
        if not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            raise TypeError(f"expected two numbers, got {type(left).__name__} and {type(right).__name__}")
        return _bounded(function(left, right))

    return checked


def _add(left: Any, right: Any) -> Any:
    return _bounded(simpleeval.safe_add(left, right))


def _power(base: int | float, exponent: int | float) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MOST_BITS:
        raise OverflowError(f"a whole number of more than {MOST_BITS} bits")
    if base < 0 and not float(exponent).is_integer():
        raise ValueError("a broken power of a negative number")
    return base**exponent


def _round(value: int | float, digits: int = 0) -> int | float:
    if not -30 <= digits <= 30:
        raise ValueError("round takes from -30 to 30 digits")
    return round(value, digits) if digits else round(value)


def _number(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if isinstance(value, str) and len(value) > 400:
            raise ValueError("the text is too long for a number")
        return convert(value)

    return checked


def _sum(numbers: list[Any]) -> Any:
    total: Any = 0
    for number in numbers:
        total = _OPERATORS[ast.Add](total, number)
    return total


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _add,
    ast.Sub: _on_numbers(operator.sub),
    ast.Mult: _on_numbers(operator.mul),
    ast.Div: _on_numbers(operator.truediv),
    ast.FloorDiv: _on_numbers(operator.floordiv),
    ast.Mod: _on_numbers(operator.mod),
    ast.Pow: _on_numbers(_power),
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
    ast.Is: lambda left, right: left is right,
    ast.IsNot: lambda left, right: left is not right,
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "float": _number(float),
    "floor": math.floor,
    "int": _number(int),
    "len": len,
    "max": max,
    "min": min,
    "round": _round,
    "sorted": sorted,
    "sum": _sum,
}
