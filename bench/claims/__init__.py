"""Claims: one bench a file, each with the target that it can miss."""
