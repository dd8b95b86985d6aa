"""Every reader of bytes or text that comes from elsewhere, given what nobody meant it to be given."""
