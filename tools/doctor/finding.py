"""What a check answers."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """How a check ended. A warning is what works and may hurt; a failure is what does not work or loses something."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """What was looked at, how it is, what was found, and what to do (nothing where it is well)."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that is well."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return a finding that works and may hurt."""
    return Finding(check, Verdict.WARNING, found, advice)


def failure(check: str, found: str, advice: str) -> Finding:
    """Return a finding that does not work."""
    return Finding(check, Verdict.FAILURE, found, advice)


def skipped(check: str, reason: str) -> Finding:
    """Return that a check could not, or need not, be done."""
    return Finding(check, Verdict.SKIPPED, reason)
