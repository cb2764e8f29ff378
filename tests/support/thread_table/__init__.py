"""The table of docs/threads.md: which object may be used from which thread, and from inside of which call."""

from thread_table.places import PLACES, observe
from thread_table.row import RUNTIME_ERROR, WORKS, Row, Scene
from thread_table.rows import ROWS

__all__ = ["PLACES", "ROWS", "RUNTIME_ERROR", "WORKS", "Row", "Scene", "observe"]
