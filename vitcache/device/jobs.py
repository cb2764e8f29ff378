"""`Job`: a callable that runs once, on one of several threads, and the future of its result.

The lock of a future is a private attribute of the standard library. If a version of Python renames it,
futures work as before, but an interrupt can leave their lock acquired. Versions of Python 3.14 without the
mend of https://github.com/python/cpython/issues/148874 have such a point in every `with` statement.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from time import monotonic
from typing import TypeVar

from vitcache._native import acts_for
from vitcache.device.locks import new_lock

_T = TypeVar("_T")

_CHECK_SECONDS = 1.0  # between two looks at the state of a future that a thread waits for


class JobLostError(RuntimeError):
    """A job was submitted before a fork, and the thread that would run it does not exist in the child."""


class _Condition(threading.Condition):
    """A condition that an interrupt cannot leave acquired.

    The `__enter__` of the standard library is a Python function. An interrupt between its last two
    instructions leaves the lock acquired, and the thread that completes the future would wait for ever.
    These attributes are the methods of the lock itself, which `with` calls in one instruction.
    """

    @property
    def __enter__(self) -> Callable[[], bool]:
        return self._lock.__enter__  # type: ignore[attr-defined, no-any-return]

    @property
    def __exit__(self) -> Callable[..., None]:
        return self._lock.__exit__  # type: ignore[attr-defined, no-any-return]


class Job(Future[_T]):
    """A future with the callable that computes its result. The first thread that calls `run` runs it.

    Then the job does not refer to the callable any more. ``submitter_waits=False``: a wait of the thread that
    made the job, for jobs that it made, is not one for this job.
    """

    def __init__(self, work: Callable[[], _T], *, submitter_waits: bool = True) -> None:
        super().__init__()
        self._lock = new_lock()
        self._condition = _Condition(self._lock)
        self._submitter = threading.get_ident() if submitter_waits else 0
        self._running = running = _thread.allocate_lock()  # acquired until the job is done
        running.acquire()
        self.add_done_callback(lambda _: running.release())
        self._work = [work]  # `pop` is atomic: only one thread gets the callable

    def run(self, *, is_caller: bool = False) -> None:
        """Run the job, unless another thread does. `is_caller`: in a thread that waits for the result."""
        try:
            work = self._work.pop()
        except IndexError:
            return
        try:
            if not self.set_running_or_notify_cancel():
                return
            if self._submitter == threading.get_ident():
                result = work()
            else:
                with acts_for(self._submitter):
                    result = work()
            if not self.done():  # the callable has forked, and this is the child, which has lost the job
                self.set_result(result)
        except BaseException as error:
            if not self.done():
                self.set_exception(error)
            if is_caller and not isinstance(error, Exception):
                raise  # an interrupt of the caller
            del self, work  # the traceback of `error` refers to this frame

    def lose(self, pid: int, child: int) -> None:
        """Fail, in a forked child, because the threads of the parent do not exist there."""
        self._work.clear()
        with suppress(InvalidStateError):
            self.set_exception(
                JobLostError(f"the job was submitted in process {pid}: process {child} lacks its threads")
            )

    def is_locked_here(self) -> bool:
        """Whether a signal handler has interrupted the calling thread in a method of this future."""
        is_owned = getattr(self._lock, "_is_owned", None)
        return is_owned is not None and bool(is_owned())

    def result(self, timeout: float | None = None) -> _T:
        """As `Future.result`."""
        self._wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `Future.exception`."""
        self._wait(timeout)
        return super().exception(0)

    def _wait(self, timeout: float | None) -> None:
        """Wait until the job is done. Raises TimeoutError after `timeout` seconds.

        A `Future` waits for a condition. If a signal handler interrupts this wait at its end, the caller can
        get the error of a lock that is released twice, in place of the handler's exception. `acquire` waits
        in C code. It has a limit, because a signal that arrives before it begins does not wake it.
        """
        end = None if timeout is None else monotonic() + timeout
        while not self.done():
            left = _CHECK_SECONDS if end is None else min(end - monotonic(), _CHECK_SECONDS)
            if left <= 0:
                raise TimeoutError
            if self._running.acquire(timeout=left):
                self._running.release()  # if an interrupt skips this, other waits end at their limit
