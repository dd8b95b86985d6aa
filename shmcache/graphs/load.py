"""From a path to a graph."""

from __future__ import annotations

import math
from importlib.resources import files
from os import PathLike
from pathlib import Path

from shmcache.errors import SettingsError
from shmcache.graphs.document import read_document
from shmcache.graphs.draft import LoadedGraph, build
from shmcache.graphs.native import draft_of_native
from shmcache.graphs.platform import drafts_of_platform, is_platform_graph
from shmcache.graphs.wfformat import draft_of_wfformat

__all__ = ["LoadedGraph", "example_path", "load_graph_file", "load_graph_files"]


def load_graph_file(path: str | PathLike[str], *, time_scale: float = 0.0) -> LoadedGraph:
    """Return the graph that a file defines, with all its node definitions, after checking all of it.

    The format is told from the content: "schemaVersion" or "workflow" is WfFormat, "nodes" with a "block_id" is the
    AutoGPT Platform's, other "nodes" our own. Identifiers come from the content and `time_scale`: the same file gives
    the same ones. `time_scale` multiplies recorded runtimes (seconds); 0 sleeps not at all.

    Raises GraphFileError, naming file and place, for the first thing wrong with the file, and SettingsError for a time
    scale that is negative or not finite. Blocks that nodes name are imported."""
    return load_graph_files(path, time_scale=time_scale)[0]


def load_graph_files(
    path: str | PathLike[str], *, time_scale: float = 0.0, replay_seed: int | None = None
) -> list[LoadedGraph]:
    """Return what `load_graph_file` does, and after it the sub-graphs that the file has.

    With a `replay_seed`, blocks of the platform that are not installed are stood in for; their values come from it."""
    if not math.isfinite(time_scale) or time_scale < 0:
        raise SettingsError(f"a time scale must be a finite number that is not negative, got {time_scale}")
    document = read_document(Path(path))
    if "schemaVersion" in document.entries() or "workflow" in document.entries():
        return [build(draft_of_wfformat(document, time_scale), time_scale)]
    if is_platform_graph(document):
        return [build(draft, time_scale) for draft in drafts_of_platform(document, replay_seed)]
    if "nodes" in document.entries():
        return [build(draft_of_native(document), time_scale)]
    return document.fail('neither WfFormat ("schemaVersion" and "workflow") nor a graph of ours ("nodes")')


def example_path() -> Path:
    """Return the path of the example that comes with the package, a graph in our own format."""
    return Path(str(files("shmcache.graphs") / "overdue_invoices.json"))
