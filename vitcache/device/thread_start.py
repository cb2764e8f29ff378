"""`start_threads`: starts threads where no interrupt can stop it half-way."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

_CHECK_SECONDS = 1.0  # between two checks whether this is a forked child, which lacks the starter

_starters: set[int] = set()  # idents of the threads that start threads now


def start_threads(start: Callable[[], None]) -> bool:
    """Call `start`, which starts threads, in another thread, and wait for its end.

    An interrupt of `Thread.start` can leave a lock acquired, and a thread that is never started. Python
    raises interrupts in the main thread only. An interrupt of this function does not stop `start`.

    Returns
    -------
    bool
        False if the process cannot start a thread. Then `start` was called or not.
    """
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    pid, failure = os.getpid(), None
    try:
        if threading.get_ident() in _starters:  # in a finalizer, which the garbage collector has called
            start()
            return True
        _thread.start_new_thread(_call, (start, ended))
        while os.getpid() == pid:  # a signal handler may fork, and the child lacks the other thread
            try:
                failure = ended.get(timeout=_CHECK_SECONDS)
                break
            except Empty:
                continue
        if failure is not None:
            raise failure
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        return False
    return True


def _call(start: Callable[[], None], ended: SimpleQueue[BaseException | None]) -> None:
    ident = threading.get_ident()
    _starters.add(ident)
    try:
        start()
        ended.put(None)
    except BaseException as error:
        ended.put(error)
    finally:
        _starters.discard(ident)


os.register_at_fork(after_in_child=_starters.clear)
