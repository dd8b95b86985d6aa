"""A JSON document that knows where it came from: reading it, and walking it with errors that name the place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

from shmcache.errors import GraphFileError

LARGEST_FILE_BYTES = 2**29
DEEPEST_NESTING = 100
_LONGEST_NUMBER = 300


class Spot:
    """A value in a graph file and its place there, such as `nodes[3].block`.

    Every reading method raises GraphFileError, with file and place, for what it does not find as it should be."""

    __slots__ = ("path", "place", "value")

    def __init__(self, path: str, place: str, value: Any) -> None:
        self.path = path
        self.place = place
        self.value = value

    def fail(self, problem: str) -> NoReturn:
        """Raise the GraphFileError of this place."""
        raise GraphFileError(self.path, self.place, problem)

    def __contains__(self, key: str) -> bool:
        """Whether this object has the key, with anything but null."""
        return self.entries().get(key) is not None

    def __getitem__(self, key: str) -> Spot:
        """Return the value of a key that must be there."""
        entries = self.entries()
        if key not in entries:
            self.fail(f'"{key}" is missing')
        return Spot(self.path, f"{self.place}.{key}" if self.place else key, entries[key])

    def entries(self) -> dict[str, Any]:
        """Return the value, which must be an object."""
        if not isinstance(self.value, dict):
            self._expected("an object")
        return self.value

    def items(self) -> Iterator[Spot]:
        """Yield the items of the value, which must be a list."""
        if not isinstance(self.value, list):
            self._expected("a list")
        for index, item in enumerate(self.value):
            yield Spot(self.path, f"{self.place}[{index}]", item)

    def text(self) -> str:
        """Return the value, which must be text that can be stored."""
        if not isinstance(self.value, str):
            self._expected("text")
        problem = _problem_of_text(self.value)
        if problem:
            self.fail(problem)
        return self.value

    def name(self) -> str:
        """Return the value, which must be text and not empty."""
        if not self.text():
            self.fail("expected a name, got empty text")
        return self.text()

    def boolean(self) -> bool:
        """Return the value, which must be true or false."""
        if not isinstance(self.value, bool):
            self._expected("true or false")
        return self.value

    def number(self) -> int | float:
        """Return the value, which must be a finite number, not negative."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            self._expected("a number")
        if not math.isfinite(self.value) or self.value < 0:
            self.fail(f"expected a finite number that is not negative, got {shown(self.value)}")
        return self.value

    def only(self, *known: str) -> None:
        """Refuse keys of this object other than these."""
        for key in self.entries():
            if key not in known:
                self.fail(f"{shown(key)} is not known here: there are {', '.join(known)}")

    def storable(self) -> Any:
        """Return the value, all of which must be fit to be stored: see `problem_of`."""
        pending = [(self.place, self.value)]
        while pending:
            place, value = pending.pop()
            problem = problem_of(value)
            if problem:
                Spot(self.path, place, value).fail(problem)
            if isinstance(value, dict):
                for key, item in value.items():
                    inner = f"{place}.{key}".lstrip(".") if key.isidentifier() else f"{place}[{shown(key)}]"
                    pending.append((inner, item))
            elif isinstance(value, list):
                pending.extend((f"{place}[{index}]", item) for index, item in enumerate(value))
        return self.value

    def _expected(self, expected: str) -> NoReturn:
        self.fail(f"expected {expected}, got {shown(self.value)}")


def shown(value: Any) -> str:
    """Return a value as one short line, for messages."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = ascii(value) if isinstance(value, str) and _problem_of_text(value) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def problem_of(value: Any) -> str | None:
    """Return why a value cannot be stored, or None; of a list or an object, only its keys are looked at."""
    if isinstance(value, str):
        return _problem_of_text(value)
    if isinstance(value, dict):
        return next(filter(None, map(_problem_of_text, value)), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} cannot be stored: numbers must be finite"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return f"{shown(value)} cannot be stored: whole numbers must fit 64 bits"
    return None


def _problem_of_text(text: str) -> str | None:
    if "\0" in text:
        return "text with a NUL character cannot be stored"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "text with half a surrogate pair cannot be stored"
    return None


def read_document(path: Path) -> Spot:
    """Return the object that a JSON file holds. Raises GraphFileError for everything else that a path may lead to."""
    name = str(path)
    data = _read(path, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GraphFileError(name, f"byte {error.start}", "not UTF-8 text") from None
    if not text.strip():
        raise GraphFileError(name, "", "the file is empty")
    document = _parse(name, text)
    if not isinstance(document, dict):
        raise GraphFileError(name, "", f"expected an object, got {shown(document)}")
    spot = Spot(name, "", document)
    _refuse_deep_nesting(spot)
    return spot


def _read(path: Path, name: str) -> bytes:
    try:
        about = path.stat()
        if not S_ISREG(about.st_mode):
            raise GraphFileError(name, "", "not a regular file")
        if about.st_size > LARGEST_FILE_BYTES:
            raise GraphFileError(name, "", f"larger than {LARGEST_FILE_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise GraphFileError(name, "", f"cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise GraphFileError(ascii(name), "", "cannot be read: not a path") from None


def _parse(name: str, text: str) -> Any:
    def whole_number(digits: str) -> int:
        if len(digits) > _LONGEST_NUMBER:
            raise GraphFileError(name, "", f"a whole number of {len(digits):,} digits cannot be stored")
        return int(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise GraphFileError(name, "", f"key {shown(twice)} is there twice in one object")
        return made

    try:
        return json.loads(text, parse_int=whole_number, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        rest = text[error.pos :].strip()
        ends = error.msg.startswith("Unterminated") or any(word.startswith(rest) for word in ("true", "false", "null"))
        problem = f"not JSON: {error.msg}" + (": is the file truncated?" if ends else "")
        raise GraphFileError(name, place, problem) from None
    except RecursionError:
        raise GraphFileError(name, "", f"nested deeper than {DEEPEST_NESTING} levels") from None


def _refuse_deep_nesting(spot: Spot) -> None:
    level = [spot.value]
    for _ in range(DEEPEST_NESTING):
        deeper: list[Any] = []
        for value in level:
            deeper.extend(value.values() if isinstance(value, dict) else value)
        level = [value for value in deeper if isinstance(value, (dict, list))]
        if not level:
            return
    spot.fail(f"nested deeper than {DEEPEST_NESTING} levels")
