"""What an operator sees of an arena, read once and shown in three ways: metrics, a status page, `shmcache top`.

reader      a Snapshot of an arena, out of its memory alone: no lock, no lane, no question to any process
figures     what two snapshots say together: rates, ratios, quantiles; and the last minutes of them
readiness   what is wrong, in words
exposition  a snapshot as Prometheus metrics           server   metrics, page and health over HTTP
"""
