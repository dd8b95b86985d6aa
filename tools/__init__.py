"""What people start: the command line, the supervisor."""
