"""Graph files: read, checked, and turned into graphs.

Three formats are known, told apart by their content: recorded workflows in WfFormat 1.5 (`shmcache.graphs.wfformat`),
the AutoGPT Platform's exports (`shmcache.graphs.platform`) and our own JSON (`shmcache.graphs.native`); each module's
docstring defines its format.
"""

from shmcache.graphs.load import LoadedGraph, example_path, load_graph_file, load_graph_files

__all__ = ["LoadedGraph", "example_path", "load_graph_file", "load_graph_files"]
