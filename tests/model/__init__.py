"""The protocols of the arena and its consumers, written down small, and every way in which they can go."""
