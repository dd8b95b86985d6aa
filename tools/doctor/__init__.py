"""`shmcache doctor`: whether this machine and this database can carry an arena, and what to do where they cannot.

`finding` is what a check answers; `host` reads files of the machine; each other module checks one area; `examination`
runs them all; `report` prints what they found.
"""
