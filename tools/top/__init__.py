"""`shmcache top`: the arenas of this user, live, in a terminal.

app       what is on the screen, and which key does what       actions   what the keys do
watching  the arenas, looked at again and again                texts     figures as people read them
"""
