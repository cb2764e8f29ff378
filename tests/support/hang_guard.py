"""Runs calls in threads, in a forked child or in a new process, so that a call that hangs fails its test."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SECONDS = 60


class Running:
    """Calls that run in one thread each."""

    def __init__(self, *calls: Callable[[], Any]) -> None:
        self._results: list[Any] = [None] * len(calls)
        self._threads = [
            threading.Thread(target=self._run, args=(number, call), daemon=True)
            for number, call in enumerate(calls)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, call: Callable[[], Any]) -> None:
        try:
            self._results[number] = call()
        except BaseException as error:
            self._results[number] = error

    def results(self) -> list[Any]:
        """Return the result or the exception of each call. Fail with all stacks if one hangs."""
        for thread in self._threads:
            thread.join(SECONDS)
            if thread.is_alive():
                faulthandler.dump_traceback(sys.__stderr__)
                raise AssertionError(f"{thread.name} hangs: see the stacks above")
        return self._results


def wait_until(condition: Callable[[], object]) -> None:
    """Let other threads run until a condition is true. Fail if it stays false."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition stayed false"
        time.sleep(0)  # another thread gets the GIL


def end_if_it_hangs(seconds: int) -> None:
    """Let a forked child print its stacks and end, if it still runs after some seconds.

    `faulthandler.dump_traceback_later` would wait for ever in a child whose parent has called it.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=sys.__stderr__, chain=True)
    signal.alarm(seconds)


def run_in_child(check: Callable[[], object]) -> int:
    """Fork, call `check` in the child, and return its exit code: 0 if it returned, -SIGALRM if it hung.

    A child that hangs prints its stacks.
    """
    pid = os.fork()
    if pid == 0:
        end_if_it_hangs(SECONDS)
        try:
            check()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def text_in_child(call: Callable[[], object]) -> str:
    """Fork, and return the text of the result of `call` in the child, or of its exception with its type.

    A child that hangs prints its stacks, and its exit code fails the test.
    """
    read, write = os.pipe()

    def tell() -> None:
        try:
            text = str(call())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())

    code = run_in_child(tell)
    os.close(write)
    assert code == 0
    with os.fdopen(read) as pipe:
        return pipe.read()
