"""`new_lock`: a lock that an interrupt cannot leave acquired, a call-back can re-enter, and a fork frees.

All locks of vitcache are made here. Each is re-entrant, because a signal handler, or a `__del__` that the
garbage collector calls, can call vitcache between any two instructions of a thread that holds the lock.
So the code under a lock must bear that another call ran in the middle of it.

Acquire a lock by `with` only. Its methods are C functions, so no interrupt occurs between the acquisition and
the start of the block. An interrupt can occur between `lock.acquire()` and a `try` after it.

The two methods that the child of a fork calls are private methods of the standard library. If a version of
Python renames them, locks work as before, but a child keeps those that another thread held at the fork.
"""

from __future__ import annotations

import os
import threading
import weakref

# The references of all locks. A set of references is changed by C functions alone, unlike a `WeakSet`: an
# interrupt or the garbage collector cannot stop a change half-way.
_locks: set[weakref.ref[threading.RLock]] = set()


def new_lock() -> threading.RLock:
    """Return a new re-entrant lock. In a forked child, it is free unless the thread that forked holds it."""
    lock = threading.RLock()
    _locks.add(weakref.ref(lock, _locks.discard))
    return lock


def _free_locks_of_lost_threads() -> None:
    """Free the locks that threads of the parent hold, which do not exist in this forked child."""
    for reference in _locks.copy():
        lock = reference()
        is_owned = getattr(lock, "_is_owned", None)
        free = getattr(lock, "_at_fork_reinit", None)
        if is_owned is not None and free is not None and not is_owned():
            free()


os.register_at_fork(after_in_child=_free_locks_of_lost_threads)
