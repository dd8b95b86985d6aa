"""Graph files: read, checked, and turned into graphs.

Two formats are known, told apart by their content: recorded workflows in WfFormat 1.5 (`shmcache.graphs.wfformat`) and
our own JSON (`shmcache.graphs.native`); each module's docstring defines its format.
"""

from shmcache.graphs.load import LoadedGraph, example_path, load_graph_file

__all__ = ["LoadedGraph", "example_path", "load_graph_file"]
