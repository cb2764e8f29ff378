"""Every lock of the package is made by `new_lock`: interrupts, call-backs and forks leave none acquired."""

import ast
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vitcache.device.locks import new_lock

ROOM = Path(__file__).parents[1] / "vitcache"

# Their methods are Python code, or hold a lock that is, which an interrupt can stop half-way.
UNSAFE = {
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Lock",
    "RLock",
    "Semaphore",
    "allocate_lock",
    "LifoQueue",
    "PriorityQueue",
    "Queue",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
}
MODULES = {"threading", "_thread", "queue", "concurrent.futures", "futures", "multiprocessing", "asyncio"}

# They wrap the locks of the standard library.
WRAPPERS = {"device/locks.py", "device/jobs.py"}


def uses_of_unsafe_locks(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield from (f"line {node.lineno}: {name.name}" for name in node.names if name.name in UNSAFE)
        if isinstance(node, ast.Attribute) and node.attr in UNSAFE and ast.unparse(node.value) in MODULES:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "source",
    [
        "import threading\nlock = threading.Lock()",
        "from threading import RLock",
        "import queue\nclass A:\n    def f(self):\n        return queue.Queue()",
        "from concurrent.futures import Future, ThreadPoolExecutor",
        "import concurrent.futures\npool = concurrent.futures.ThreadPoolExecutor",
    ],
)
def test_search_finds_unsafe_lock(source: str) -> None:
    assert len(list(uses_of_unsafe_locks(source))) == 1


def test_package_makes_all_locks_with_new_lock() -> None:
    found = {}
    for path in sorted(ROOM.rglob("*.py")):
        name = path.relative_to(ROOM).as_posix()
        if name not in WRAPPERS and not name.startswith("bench/"):
            found[name] = list(uses_of_unsafe_locks(path.read_text()))
    assert len(found) > 100
    assert {name: uses for name, uses in found.items() if uses} == {}


def in_child(check: Callable[[], bool]) -> int:
    """Fork, call `check` in the child, and return the exit code: 0 if it returned True, 14 if it hung."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def test_child_of_fork_finds_lock_of_other_thread_free() -> None:
    lock = new_lock()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(60)
        assert in_child(lambda: lock.acquire(blocking=False)) == 0
        assert not lock.acquire(blocking=False)  # the parent's thread still holds it
    finally:
        done.set()
        holder.join()


def test_child_of_fork_keeps_lock_of_the_forking_thread() -> None:
    lock = new_lock()

    def leave_block() -> bool:
        lock.release()  # RuntimeError if the lock were free
        return lock.acquire(blocking=False)

    with lock:
        assert in_child(leave_block) == 0


def test_lock_can_be_acquired_again_by_its_thread_only() -> None:
    lock = new_lock()
    from_thread: list[bool] = []
    with lock:
        assert lock.acquire(blocking=False)
        lock.release()
        other = threading.Thread(target=lambda: from_thread.append(lock.acquire(blocking=False)))
        other.start()
        other.join(60)
    assert from_thread == [False]


def test_lock_is_freed_with_its_owner() -> None:
    lock = new_lock()
    reference = weakref.ref(lock)
    del lock
    assert reference() is None
