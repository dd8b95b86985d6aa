"""shmcache: takes the database off the hot path of graph executors."""
