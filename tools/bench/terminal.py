"""The results on a terminal: a table for each test, the targets, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from rich.console import Console
from rich.table import Table

from tools.bench.results import Figure, Results, middle_half
from tools.bench.targets import TARGETS, Target, Verdict

_COLOURS = {
    Verdict.MET: "green", Verdict.UNCERTAIN: "yellow", Verdict.MISSED: "red", Verdict.NOT_MEASURED: "dim",
}  # fmt: skip
_WIDE = 0.5


def amount(value: float, unit: str) -> str:
    """Return a figure with its unit, in three digits."""
    if unit == "ns":
        for limit, scale, name in ((1e3, 1.0, "ns"), (1e6, 1e3, "us"), (1e9, 1e6, "ms"), (float("inf"), 1e9, "s")):
            if value < limit:
                return f"{value / scale:.3g} {name}"
    if unit == "bytes":
        return f"{value / (1 << 20):,.1f} MiB"
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def ratio_text(value: float) -> str:
    """Return a ratio in three digits; a small one as a part of one too."""
    return f"{value:.3g} (1/{1 / value:,.0f})" if 0 < value < 0.095 else f"{value:.3g}"


def limit_text(target: Target) -> str:
    """Return a target's limit with its direction."""
    word = "at least" if target.at_least else "at most"
    limit = f"1/{1 / target.limit:.0f}" if 0 < target.limit < 0.095 else f"{target.limit:g}"
    return f"{word} {limit} {target.unit}" if target.unit else f"{word} {limit}"


def print_results(results: Results, suites: Iterable[str], console: Console) -> None:
    """Print everything."""
    for test in dict.fromkeys((each.suite, each.test) for each in results.figures):
        console.print(_test_table([each for each in results.figures if (each.suite, each.test) == test]))
    console.print(_target_table(results, set(suites)))
    for missing in results.not_measured:
        console.print(
            f"[dim]not measured ({missing.suite}): {missing.subject}: {missing.reason}[/dim]", highlight=False
        )
        if missing.install:
            console.print(f"    to measure it: {missing.install}", highlight=False)
    for remark in results.remarks:
        console.print(f"[dim]{remark}[/dim]", highlight=False)


def _test_table(figures: list[Figure]) -> Table:
    table = Table(title=f"{figures[0].suite}: {figures[0].test}", title_justify="left")
    table.add_column("")
    table.add_column("median", justify="right")
    has_rounds = any(len(figure.rounds) > 1 for figure in figures)
    if has_rounds:
        table.add_column("middle half", justify="right")
    names = list(dict.fromkeys(name for figure in figures for name in figure.percentiles))
    for name in names:
        table.add_column(f"p{name.removesuffix('.0')}", justify="right")
    table.add_column("note", style="dim", overflow="fold")
    for figure in sorted(figures, key=lambda each: each.median, reverse=figures[0].unit.endswith("/s")):
        row = [figure.subject, amount(figure.median, figure.unit)]
        if has_rounds:
            low, high = figure.quartiles
            wide = " (wide)" if figure.spread > _WIDE else ""
            row.append(f"{amount(low, figure.unit)} - {amount(high, figure.unit)}{wide}")
        row += [amount(figure.percentiles[name], figure.unit) if name in figure.percentiles else "" for name in names]
        table.add_row(*row, figure.note)
    return table


def _target_table(results: Results, suites: set[str]) -> Table:
    table = Table(title="figures to reach", title_justify="left")
    for name in ("suite", "what"):
        table.add_column(name)
    for name in ("measured", "middle half", "target"):
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_column("note", style="dim", overflow="fold")
    ratios = {each.target: each for each in results.ratios}
    for target in TARGETS:
        if target.suite not in suites:
            continue
        ratio = ratios.get(target.name)
        verdict = target.verdict(ratio)
        shown, spread, note = "", "", ""
        if ratio is not None and ratio.pairs:
            shown = ratio_text(median(ratio.pairs)) if target.unit == "x" else f"{median(ratio.pairs):,.4g}"
            low, high = middle_half(ratio.pairs)
            spread = f"{low:.3g} - {high:.3g}" if low != high else ""
            note = ratio.note
        colour = _COLOURS[verdict]
        table.add_row(
            target.suite, target.text, shown, spread, limit_text(target), f"[{colour}]{verdict}[/{colour}]", note
        )
    return table
