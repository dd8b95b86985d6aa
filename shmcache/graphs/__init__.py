"""Graph files: read, checked, and turned into graphs."""
