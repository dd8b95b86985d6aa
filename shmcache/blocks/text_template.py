"""The text template block."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shmcache.blocks.block import Block, Inputs, Outputs
from shmcache.blocks.checks import check_result, processor_time, text_of
from shmcache.errors import BlockError

COMPUTING_SECONDS = 2.0
LONGEST_TEXT = 1_000_000
_PADDING = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"})


class TextTemplate(Block):
    """Fills the Jinja template `template` with all its other inputs, each a variable of its name; yields `text`.

    A variable that is not there is an error, not empty text. The template runs in Jinja's sandbox and cannot change
    its variables; it has no padding by width, `**`, or repetition and "%" formatting of text, which could fill the
    memory. Raises BlockError for that, above 1,000,000 characters, and after 2 seconds of processor time (in a
    process's main thread)."""

    id = "shmcache.text_template"
    inputs = ("template", "*")
    outputs = ("text",)

    def run(self, inputs: Inputs) -> Outputs:
        """Return the filled text. Raises BlockError."""
        source = text_of(self, inputs, "template")
        variables = {name: value for name, value in inputs.items() if name != "template"}
        parts: list[str] = []
        length = 0
        try:
            with processor_time(self, COMPUTING_SECONDS):
                for part in _environment().from_string(source).generate(variables):
                    length += len(part)
                    if length > LONGEST_TEXT:
                        raise BlockError(f"{self.id}: the text passes {LONGEST_TEXT:,} characters")
                    parts.append(part)
        except BlockError:
            raise
        # A template can make any operation on its variables fail in its own way.
        except Exception as error:
            raise BlockError(f"{self.id}: input 'template' cannot be filled: {type(error).__name__}: {error}") from None
        return [("text", check_result(self, "".join(parts)))]


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or not all(isinstance(operand, (int, float)) for operand in (left, right)):
            raise SecurityError(f"operator {operator} works on numbers only, and ** not at all")
        return super().call_binop(context, operator, left, right)

    # Not is_safe_attribute: the sandbox gives out its own str.format before it asks there.
    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, str) and attribute in _PADDING:
            return self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str) and isinstance(argument, str) and argument in _PADDING:
            return self.unsafe_undefined(obj, argument)
        return super().getitem(obj, argument)


@cache
def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    for name in ("center", "format", "indent"):
        del environment.filters[name]
    return environment
