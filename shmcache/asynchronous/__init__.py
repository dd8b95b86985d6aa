"""The client for event loops: what the arena answers is answered on the loop; where it would wait, a thread waits."""
