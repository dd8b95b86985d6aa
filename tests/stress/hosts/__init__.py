"""Hosts as network namespaces, each with its own /dev/shm, between them a database and a broker."""
