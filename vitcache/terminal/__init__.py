"""Text for a terminal: the help of the commands, tables, progress, and a reader that closes the pipe."""
