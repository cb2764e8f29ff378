"""`Job`: a callable that runs once, on one of several threads, and the future of its result.

The lock of a future is a private attribute of the standard library. If a version of Python renames it,
futures work as before, but an interrupt can leave their lock acquired. Versions of Python 3.14 without the
mend of https://github.com/python/cpython/issues/148874 have such a point in every `with` statement.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


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


def new_future() -> Future[Any]:
    """Return a future whose lock an interrupt cannot leave acquired."""
    future: Future[Any] = Future()
    future._condition = _Condition()
    return future


class Job(Generic[_T]):
    """One callable and the future of its result. The first thread that calls `run` runs it.

    Then the job does not refer to the callable any more.
    """

    def __init__(self, work: Callable[[], _T]) -> None:
        self.future: Future[_T] = new_future()
        self._work = [work]  # `pop` is atomic: only one thread gets the callable

    def run(self, *, is_caller: bool = False) -> None:
        """Run the job, unless another thread does. `is_caller`: in the submitting thread."""
        try:
            work = self._work.pop()
        except IndexError:
            return
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            self.future.set_exception(error)
            if is_caller and not isinstance(error, Exception):
                raise  # an interrupt of the caller
            del self  # the traceback of `error` refers to this frame
        else:
            self.future.set_result(result)
