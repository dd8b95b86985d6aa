"""The arena: bytes in shared memory. It knows no record, no SQL and no credit."""
