"""`shmcache bench`: every claim measured beside what a user would take instead, in one run.

    command     the options, and which suites run        method      rounds, loops, histograms, processes, ratios
    suites/     what is measured, one module a suite     peers/      what it is measured beside, one module a kind
    targets     the figures that we hold ourselves to    report      what came out: terminal, JSON, page

Each suite runs in a process of its own, so that nothing a peer leaves behind meets another.
"""
