"""The places from which an object is used: the columns of the table, and how a test gets there."""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hang_guard import end_if_it_hangs
from interrupts import act_at

import vitcache
from thread_table.row import RUNTIME_ERROR, WORKS, Row, Scene, Use

SECONDS = 60
NUM_LINES = 25
"""Number of lines of a use at which a signal handler uses the object again."""
PACKAGE = Path(vitcache.__file__).parent
# An editable install is a folder of links, which `rglob` does not follow.
FILES = {
    f"{folder}/{name}"
    for folder, _, names in os.walk(PACKAGE, followlinks=True)
    for name in names
    if name.endswith(".py")
}
_ERROR_OF_CHILD = 3


def in_threads(scene: Scene, use: Use) -> str:
    """Several threads use the object at once."""
    found: list[str] = []

    def repeat() -> None:
        for _ in range(5):
            found.append(_outcome(use))

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        _join(thread)
    return _one_of(found, 20)


def in_handler(scene: Scene, use: Use) -> str:
    """A signal handler, or a finalizer, of the thread that uses the object uses it, too."""
    found: list[str] = []
    total = _number_of_lines(use)
    for line in range(1, total + 1, max(1, total // NUM_LINES)):

        def interrupted(line: int = line) -> None:
            outer = _outcome(lambda: act_at(use, line, FILES, lambda: found.append(_outcome(use))))
            found.append(outer)

        _run(interrupted)
        assert _run(lambda: _outcome(use)) == WORKS  # afterwards, too
    return RUNTIME_ERROR if RUNTIME_ERROR in found else _one_of(found, NUM_LINES // 2)


def in_encoder(scene: Scene, use: Use) -> str:
    """The encoder of a pipeline uses the object, during a step."""
    found: list[str] = []

    def encode_hook() -> None:
        scene.in_encoder = lambda: None
        found.append(_outcome(use))

    scene.in_encoder = encode_hook
    _run(lambda: scene.embed(scene.pipeline, scene.new_item()))
    return _one_of(found)


def in_feature(scene: Scene, use: Use) -> str:
    """A callable feature uses the object while a key thread loads it."""
    found: list[str] = []
    _run(lambda: scene.embed(scene.pipeline, scene.new_item(lambda: found.append(_outcome(use)))))
    return _one_of(found)


def in_child(scene: Scene, use: Use) -> str:
    """A forked child uses an object of its parent, whose threads use it at the time of the fork."""
    is_over = threading.Event()
    failures: list[BaseException] = []

    def repeat() -> None:
        try:
            while not is_over.is_set():
                use()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        found = [_outcome_in_child(use) for _ in range(8)]
    finally:
        is_over.set()
        for thread in threads:
            _join(thread)
    if failures:
        raise failures[0]
    return _one_of(found)


PLACES: dict[str, Callable[[Scene, Use], str]] = {
    "several threads": in_threads,
    "signal handler, `__del__`": in_handler,
    "encoder": in_encoder,
    "callable feature": in_feature,
    "forked child": in_child,
}


def observe(row: Row, place: str) -> str:
    """Return the outcome of a use in a place."""
    scene = Scene()
    with scene.cleanup:
        use = row.use(scene)
        assert _run(lambda: _outcome(use)) == WORKS
        return PLACES[place](scene, use)


def _outcome(use: Use) -> str:
    """`WORKS`, or `RUNTIME_ERROR` if the use raises a RuntimeError that names both calls or processes."""
    try:
        use()
    except RuntimeError as error:
        if not re.search(r" was called from inside |process \d+", str(error)):
            raise  # the message must name both calls, or both processes
        return RUNTIME_ERROR
    return WORKS


def _one_of(found: list[str], least: int = 1) -> str:
    assert len(found) >= least
    assert len(set(found)) == 1, found
    return found[0]


def _run(call: Callable[[], Any]) -> Any:
    """Return the result of a call in a new thread, which is to end in time."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((call(), None))
        except BaseException as error:
            results.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    _join(thread)
    result, error = results[0]
    if error is not None:
        raise error
    return result


def _join(thread: threading.Thread) -> None:
    thread.join(SECONDS)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__)
        raise AssertionError(f"a call has not returned after {SECONDS} s: see the stacks of all threads")


def _number_of_lines(use: Use) -> int:
    """The number of lines of vitcache that a use runs in its own thread."""
    number = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal number
        if frame.f_code.co_filename not in FILES:
            return None
        number += event == "line"
        return trace

    def run() -> None:
        sys.settrace(trace)
        try:
            use()
        finally:
            sys.settrace(None)

    _run(run)
    return number


def _outcome_in_child(use: Use) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of a fork with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        end_if_it_hangs(SECONDS)
        try:
            torch.set_num_threads(1)  # the threads of OpenMP are the parent's
            code = 0 if _outcome(use) == WORKS else _ERROR_OF_CHILD
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, _ERROR_OF_CHILD), f"the child ended with {code}"
    return WORKS if code == 0 else RUNTIME_ERROR
