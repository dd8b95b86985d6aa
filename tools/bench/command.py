"""The command `shmcache bench`."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tools.bench.page import require_plotly, write_page
from tools.bench.run import run_suites
from tools.bench.suites import SUITES
from tools.bench.targets import short_of
from tools.bench.terminal import print_results


@click.command()
@click.argument("suites", nargs=-1, type=click.Choice([*SUITES, "all"]))
@click.option("--quick", is_flag=True, help="Short samples and few rounds: all suites in under two minutes.")
@click.option("--files", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Graph file to run in `graphs`; may be given again. Without one: the example.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all results there.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with plots.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a figure falls short of its target.")
def bench(
    suites: tuple[str, ...],
    quick: bool,
    files: tuple[Path, ...],
    json_file: Path | None,
    html_file: Path | None,
    check: bool,
) -> int:
    """Measure shmcache beside what one would take instead: reads, writes, sync, charges, graphs, scale, or all.

    What is not installed is reported with the command that installs it; most of it comes with
    pip install 'shmcache[bench]'."""
    _require_histogram()
    if html_file is not None:
        require_plotly()
    chosen = SUITES if not suites or "all" in suites else tuple(each for each in SUITES if each in suites)
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.fields[suite]:8}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=console, transient=True, redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    with progress if console.is_terminal else nullcontext():
        task = progress.add_task("", total=len(chosen), suite=chosen[0])

        def say(suite: str, text: str) -> None:
            progress.update(task, suite=suite, description=text[:60], completed=chosen.index(suite))

        results = run_suites(chosen, quick, files, say)
    print_results(results, chosen, Console(width=None if sys.stdout.isatty() else 180))
    if json_file is not None:
        json_file.write_text(json.dumps(results.as_json(), indent=1))
    if html_file is not None:
        write_page(results, html_file)
    short = short_of(results.ratios, chosen)
    if check:
        for line in short:
            sys.stderr.write(f"short of its target: {line}\n")
    return 1 if check and short else 0


def _require_histogram() -> None:
    try:
        import hdrh.histogram  # noqa: F401
    except ImportError:
        raise click.ClickException("hdrhistogram is not installed: pip install 'shmcache[bench]'") from None
