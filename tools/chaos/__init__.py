"""`shmcache chaos`: graphs at full load, and everything done to them that production does; then everything counted.

schedule     which fault comes when: from a seed
supervised   the program under fire: a supervisor whose workers run graphs and keep journals
journal      what was acknowledged to a worker, in a plain file
faults       how each fault is made
ground       what some faults need: a small disk, a small /dev/shm, a clock of its own
proxy        a way to the database that can be cut, delayed and half-closed
sampling     whether a long run grows
verify       journals against database, accounts and arena
run          the whole of it; report shows what came of it
"""
