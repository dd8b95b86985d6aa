"""The regular expression block."""

from __future__ import annotations

import re
from typing import Any

from shmcache.blocks.block import Block, Inputs, Outputs
from shmcache.blocks.checks import processor_time, text_of
from shmcache.errors import BlockError

COMPUTING_SECONDS = 2.0
LONGEST_PATTERN = 1_000
LONGEST_TEXT = 1_000_000
MOST_MATCHES = 10_000


class RegularExpression(Block):
    r"""Searches `text` for `pattern` (Python's syntax; flags inline, as in "(?i)total") and can replace what it finds.

    Yields `matches`, a list of {"text", "groups", "names", "start", "end"}; `first`, the first of them, if there is
    one, else `none` with the text; and, where `replacement` is given ("\1" and "\g<name>" stand for groups),
    `replaced`, the text with every match replaced.

    A pattern such as "(a+)+$" can take years on sixty characters. The guard is a limit of 2 seconds of processor time,
    after which the run fails with BlockError, beside limits of 1,000 characters for the pattern, 1,000,000 for the
    text and the result, and 10,000 matches. The limit is a signal, so it guards the main thread of a process, where
    workers run their blocks; in another thread there is none."""

    id = "shmcache.regular_expression"
    inputs = ("pattern", "text", "replacement")
    outputs = ("matches", "first", "none", "replaced")

    def run(self, inputs: Inputs) -> Outputs:
        """Search, and replace if asked to. Raises BlockError."""
        pattern = text_of(self, inputs, "pattern", longest=LONGEST_PATTERN)
        text = text_of(self, inputs, "text", longest=LONGEST_TEXT)
        replacement = text_of(self, inputs, "replacement") if "replacement" in inputs else None
        try:
            with processor_time(self, COMPUTING_SECONDS):
                found = self._find(re.compile(pattern), text)
                replaced = None if replacement is None else self._replace(found, text, replacement)
        except (re.error, RecursionError, OverflowError, IndexError) as error:
            raise BlockError(f"{self.id}: input 'pattern' or 'replacement' cannot be used: {error}") from None
        matches = [_describe(match) for match in found]
        outputs: list[tuple[str, Any]] = [("matches", matches), ("first", matches[0]) if matches else ("none", text)]
        if replaced is not None:
            outputs.append(("replaced", replaced))
        return outputs

    def _find(self, pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
        found: list[re.Match[str]] = []
        for match in pattern.finditer(text):
            if len(found) == MOST_MATCHES:
                raise BlockError(f"{self.id}: more than {MOST_MATCHES:,} matches: use a narrower pattern")
            found.append(match)
        return found

    def _replace(self, found: list[re.Match[str]], text: str, replacement: str) -> str:
        parts: list[str] = []
        length = end = 0
        for match in found:
            parts += [text[end : match.start()], match.expand(replacement)]
            length += len(parts[-2]) + len(parts[-1])
            end = match.end()
            if length > LONGEST_TEXT:
                raise BlockError(f"{self.id}: the replaced text passes {LONGEST_TEXT:,} characters")
        return "".join([*parts, text[end:]])


def _describe(match: re.Match[str]) -> dict[str, Any]:
    return {
        "text": match[0],
        "groups": list(match.groups()),
        "names": match.groupdict(),
        "start": match.start(),
        "end": match.end(),
    }
