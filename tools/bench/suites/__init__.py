"""What is measured: a module a suite, each with a function `run(bench)`."""

SUITES = ("reads", "writes", "sync", "charges", "graphs", "loops", "scale")
"""In the order in which they run."""
