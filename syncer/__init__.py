"""Processes that stand between the arena and the database."""
