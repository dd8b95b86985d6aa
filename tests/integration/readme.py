"""The README as tests read it: its fenced blocks, the commands in it, and what those are called with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click

from tools.bench.command import bench
from tools.chaos.command import chaos
from tools.cli import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(r"(?:tools/dev|(?:\w+/bin/)?shmcache) +")
_PLACE = re.compile(r"^[A-Z]+(\.\.\.)?$")


class Block(NamedTuple):
    """A fenced block: its language, what stands in it, and the heading above it."""

    language: str
    text: str
    heading: str

    def __str__(self) -> str:
        return f"{self.heading}: {self.text.strip().splitlines()[0]}"


def blocks() -> list[Block]:
    """Return every fenced block, in order."""
    found = []
    for match in _FENCE.finditer(README):
        headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", README[: match.start()]), re.MULTILINE)
        found.append(Block(match[1], match[2], headings[-1] if headings else ""))
    assert README.count("\n```") == 2 * len(found), "a fence is not closed"
    return found


def command_lines(block: Block) -> list[str]:
    """Return the commands of a block of commands, without what is said about each behind two spaces."""
    return [re.split(r" {2,}", line)[0] for line in block.text.splitlines() if line.strip()]


def inline_commands() -> list[str]:
    """Return the commands that stand in running text."""
    text = _FENCE.sub("", README)
    return [each for each in re.findall(r"`([^`\n]+)`", text) if _PROGRAM.match(each)]


def variants(line: str, values: Mapping[str, str]) -> Iterator[list[str]]:
    """Return the arguments of each command that a line stands for: with and without what is in brackets, one for each
    alternative, with values in place of the words in capitals. Raises KeyError for one that has no value."""
    match = _PROGRAM.match(line)
    assert match is not None, f"no command of ours: {line!r}"
    first, *others = (shlex.split(each) for each in line[match.end() :].split(" | "))
    head, lasts = (first[:-1], [first[-1:], *others]) if others else (first, [[]])
    for last in lasts:  # alternatives to the last word
        choices = [[[], [word[1:-1]]] if word.startswith("[") else [[word]] for word in (*head, *last)]
        for chosen in product(*choices):
            words = [word for part in chosen for word in part]
            yield [values[word.removesuffix("...")] if _PLACE.match(word) else word for word in words]


def parse(arguments: list[str], *, complete: bool) -> None:
    """Have click look at arguments, without running anything. Raises UsageError for what it does not know.

    `complete=False` lets arguments be missing, where a command is only named."""
    command: click.Command = cli
    name = "shmcache"
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        found = {"bench": bench, "chaos": chaos}.get(name) if command is cli else None
        found = found or command.get_command(click.Context(command), name)
        if found is None:
            raise click.UsageError(f"no command {name!r}")
        command = found
    try:
        command.make_context(name, list(arguments)).close()
    except click.exceptions.NoArgsIsHelpError:
        pass
    except click.MissingParameter:
        if complete:
            raise
