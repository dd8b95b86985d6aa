"""The JSON path block."""

from __future__ import annotations

from typing import Any

import jsonpath

from shmcache.blocks.block import Block, Inputs, Outputs
from shmcache.blocks.checks import processor_time, refuse, text_of, value_of
from shmcache.errors import BlockError

COMPUTING_SECONDS = 2.0


class JsonPath(Block):
    """Picks values out of the object or list `data` by the JSON path `path` (RFC 9535), such as "$.orders[*].total".

    Yields `matches`, the list of all values found, and `first`, the first of them, if there is one. Raises BlockError
    after 2 seconds of processor time (in a process's main thread)."""

    id = "shmcache.json_path"
    inputs = ("path", "data")
    outputs = ("matches", "first")

    def run(self, inputs: Inputs) -> Outputs:
        """Return what the path finds. Raises BlockError."""
        path = text_of(self, inputs, "path", longest=10_000)
        data = value_of(self, inputs, "data", "an object or a list")
        # A text would be taken for JSON to parse.
        if not isinstance(data, (dict, list)):
            refuse(self, "data", "an object or a list", data)
        try:
            with processor_time(self, COMPUTING_SECONDS):
                matches = jsonpath.findall(path, data)
        except BlockError:
            raise
        # The library lets errors of its own, of the pattern engine and of operations on mixed types through.
        except Exception as error:
            raise BlockError(f"{self.id}: input 'path' cannot be used: {type(error).__name__}: {error}") from None
        outputs: list[tuple[str, Any]] = [("matches", list(matches))]
        if matches:
            outputs.append(("first", matches[0]))
        return outputs
