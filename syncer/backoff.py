"""How long to wait before trying again: exponential, with full jitter.

Source: Marc Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015), variant "full jitter".
"""

from __future__ import annotations

import random


class Backoff:
    """Waits that grow from `first_seconds` to `most_seconds`, each drawn evenly between 0 and its limit."""

    def __init__(self, first_seconds: float = 0.05, most_seconds: float = 5.0) -> None:
        self._first = first_seconds
        self._most = most_seconds
        self._tries = 0

    @property
    def tries(self) -> int:
        """How many waits were asked for since the last success."""
        return self._tries

    @property
    def limit_seconds(self) -> float:
        """The longest that the next wait can be."""
        limit: float = min(self._most, self._first * 2.0 ** min(self._tries, 30))
        return limit

    def next_seconds(self) -> float:
        """Return how long to wait now."""
        limit = self.limit_seconds
        self._tries += 1
        return random.uniform(0, limit)  # noqa: S311 - jitter, no secret

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._tries = 0
