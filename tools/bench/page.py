"""The results as one self-contained page with plots: nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from jinja2 import Environment, PackageLoader

from tools.bench.our_arena import OURS
from tools.bench.results import Curve, Figure, Results, middle_half
from tools.bench.targets import TARGETS, Verdict
from tools.bench.terminal import amount, limit_text, ratio_text

_OURS_COLOUR = "#0b7285"
_OTHER_COLOUR = "#adb5bd"
_COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#1864ab", "#846358", "#495057")
_UNITS = {"ns": ("time, microseconds", 1e-3), "bytes": ("MiB", 2.0**-20)}
_SUITE_TITLES = {
    "reads": "Reads", "writes": "Writes", "sync": "Write-behind", "charges": "Charging", "graphs": "Graphs",
    "scale": "Scale",
}  # fmt: skip


def require_plotly() -> Any:
    """Return plotly's graph objects. Raises click.ClickException with the command that installs it."""
    try:
        from plotly import graph_objects
    except ImportError:
        raise click.ClickException("plotly is not installed: pip install 'shmcache[bench]'") from None
    return graph_objects


def write_page(results: Results, file: Path) -> None:
    """Write the page."""
    require_plotly()
    from plotly.offline import get_plotlyjs

    suites = []
    for suite, title in _SUITE_TITLES.items():
        plots = [*_bars(results, suite), *_percentile_plots(results, suite), *_curves(results, suite)]
        if plots:
            suites.append({"name": suite, "title": title, "plots": plots})
    environment = Environment(loader=PackageLoader("tools.bench", "templates"), autoescape=True)
    page = environment.get_template("page.html").render(
        machine=results.machine, targets=_target_rows(results), suites=suites, not_measured=results.not_measured,
        remarks=results.remarks, plotly=get_plotlyjs(),
    )  # fmt: skip
    file.write_text(page)


def _bars(results: Results, suite: str) -> list[str]:
    plots = []
    for test in dict.fromkeys(each.test for each in results.figures if each.suite == suite):
        figures = [each for each in results.figures if each.suite == suite and each.test == test]
        if not any(each.percentiles for each in figures):
            plots.append(_bar(test, figures))
    return plots


def _bar(test: str, figures: Sequence[Figure]) -> str:
    go = require_plotly()
    unit = figures[0].unit
    title, scale = _UNITS.get(unit, (unit, 1.0))
    best_first = sorted(figures, key=lambda each: each.median, reverse=not unit.endswith("/s"))
    values = [each.median * scale for each in best_first]
    logarithmic = min(values) > 0 and max(values) / min(values) > 20
    halves = [each.quartiles for each in best_first]
    figure = go.Figure(
        go.Bar(
            y=[f"{each.subject}  <b>{amount(each.median, unit)}</b>" for each in best_first], x=values,
            orientation="h",
            marker_color=[_OURS_COLOUR if each.subject.startswith(OURS) else _OTHER_COLOUR for each in best_first],
            error_x={
                "type": "data", "symmetric": False, "thickness": 1, "color": "#495057",
                "array": [(high - each.median) * scale for each, (_, high) in zip(best_first, halves, strict=True)],
                "arrayminus": [(each.median - low) * scale for each, (low, _) in zip(best_first, halves, strict=True)],
            },
            hovertext=[each.note or each.subject for each in best_first], hoverinfo="text",
        )
    )  # fmt: skip
    figure.update_layout(height=90 + 30 * len(figures), bargap=0.3)
    figure.update_xaxes(type="log" if logarithmic else "linear", title=title)
    return _html(figure, test)


def _percentile_plots(results: Results, suite: str) -> list[str]:
    go = require_plotly()
    plots = []
    for test in dict.fromkeys(each.test for each in results.figures if each.suite == suite and each.percentiles):
        figure = go.Figure()
        others = 0
        for each in results.figures:
            if each.suite == suite and each.test == test and each.percentiles:
                mine = each.subject.startswith(OURS)
                others += not mine
                figure.add_scatter(
                    x=[f"p{name.removesuffix('.0')}" for name in each.percentiles],
                    y=[value * 1e-3 for value in each.percentiles.values()], name=each.subject, mode="lines+markers",
                    line={"width": 4 if mine else 1.5,
                          "color": _OURS_COLOUR if mine else _COLOURS[1 + others % (len(_COLOURS) - 1)]},
                )  # fmt: skip
        figure.update_yaxes(type="log", title="time, microseconds")
        figure.update_layout(height=400 + 16 * len(figure.data))  # its legend lies below it
        plots.append(_html(figure, f"{test}: percentiles"))
    return plots


def _curves(results: Results, suite: str) -> list[str]:
    mine = [each for each in results.curves if each.suite == suite]
    charts = dict.fromkeys(each.chart for each in mine)
    return [_curve(chart, [each for each in mine if each.chart == chart]) for chart in charts]


def _curve(chart: str, curves: Sequence[Curve]) -> str:
    go = require_plotly()
    figure = go.Figure()
    for number, each in enumerate(curves):
        figure.add_scatter(
            x=[x for x, _ in each.points], y=[y for _, y in each.points], name=each.subject, mode="lines+markers",
            line={"color": _COLOURS[number % len(_COLOURS)], "dash": "dot" if each.predicted else "solid"},
        )  # fmt: skip
    figure.update_xaxes(type="log" if curves[0].log_x else "linear", title=curves[0].x_title)
    figure.update_yaxes(type="log" if curves[0].log_y else "linear", title=curves[0].y_title)
    figure.update_layout(height=420)
    return _html(figure, chart)


def _html(figure: Any, title: str) -> str:
    figure.update_layout(
        title={"text": title, "font": {"size": 15}}, template="plotly_white",
        margin={"l": 10, "r": 30, "t": 45, "b": 45}, autosize=True,
        font={"family": "system-ui, sans-serif", "size": 12}, legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    figure.update_yaxes(automargin=True)
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )
    return html


def _target_rows(results: Results) -> list[dict[str, str]]:
    ratios = {each.target: each for each in results.ratios}
    rows = []
    for target in TARGETS:
        ratio = ratios.get(target.name)
        verdict = target.verdict(ratio)
        if verdict is Verdict.NOT_MEASURED:
            continue
        assert ratio is not None
        value = median(ratio.pairs)
        low, high = middle_half(ratio.pairs)
        rows.append({
            "suite": target.suite,
            "text": target.text,
            "measured": ratio_text(value) if target.unit == "x" else f"{value:,.4g}",
            "spread": f"{low:.3g} to {high:.3g}" if low != high else "",
            "limit": limit_text(target),
            "verdict": str(verdict),
            "note": ratio.note,
        })  # fmt: skip
    return rows
