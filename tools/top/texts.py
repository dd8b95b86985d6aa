"""Figures as people read them, in few columns."""

from __future__ import annotations

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_UNITS = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


def number(value: float) -> str:
    """Return a number: 12.5, 1,234, 56.7k."""
    for least, unit, letter in _UNITS:
        if abs(value) >= least:
            return f"{value / unit:.1f}{letter}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def size(value: float) -> str:
    """Return a size in bytes: 512 B, 1.5 MiB."""
    unit = 0
    while value >= 1024 and unit < len(_SIZES) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_SIZES[unit]}" if unit and value < 100 else f"{value:.0f} {_SIZES[unit]}"


def duration(seconds: float | None) -> str:
    """Return a duration: 120 us, 4.2 ms, 1.5 s, 3 min, 2.0 h; a dash for one that is not known."""
    if seconds is None:
        return "-"
    if seconds == 0:
        return "0 s"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def ratio(value: float | None) -> str:
    """Return a ratio in percent; a dash for one that is not known."""
    return "-" if value is None else f"{value:.1%}".replace("%", " %")


def bar(fullness: float, width: int) -> str:
    """Return a bar of so many columns, filled as far as something is full (0 to 1)."""
    eighths = round(min(max(fullness, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width, "·")
