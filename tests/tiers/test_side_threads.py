"""The threads beside a disk tier's thread: errors, interrupts, and threads that cannot be started."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Barrier, Event
from types import SimpleNamespace
from typing import Any

import pytest
from interrupts import interrupt

from vitcache.device import jobs, thread_start, worker_threads
from vitcache.device.worker_threads import WorkerThreads
from vitcache.tiers.side_threads import SideThreads

FILES = {worker_threads.__file__, thread_start.__file__, jobs.__file__, concurrent.futures._base.__file__}


def fail() -> None:
    raise OSError("planted")


@pytest.fixture(params=["threads", "no thread"])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SideThreads]:
    """Side threads, which cannot be started in the second case."""
    if request.param == "no thread":
        monkeypatch.setattr(WorkerThreads, "_start_threads", lambda self: False)
    made = SideThreads("vitcache-test", 4)
    yield made
    made.close()


def test_all_callables_have_run_when_the_call_returns(side: SideThreads) -> None:
    done: list[int] = []
    for count in (0, 1, 2, 3, 50):
        side.share([partial(done.append, number) for number in range(count)])
        assert sorted(done) == list(range(count))
        done.clear()


def test_error_of_a_callable_is_raised_by_the_call(side: SideThreads) -> None:
    done: list[int] = []
    works: list[Callable[[], None]] = [partial(done.append, 0), fail, partial(done.append, 2)]
    with pytest.raises(OSError, match="planted"):
        side.share(works)
    with pytest.raises(OSError, match="planted"):
        side.run_both(fail, lambda: None)
    done.clear()
    side.share([partial(done.append, 1)])
    assert done == [1]


def test_error_of_the_caller_is_raised_after_the_callable_beside_it(side: SideThreads) -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="planted"):
        side.run_both(partial(done.append, 2), fail)
    assert done == [2]


def test_five_callables_run_at_once() -> None:
    side, barrier = SideThreads("vitcache-test", 4), Barrier(5)

    def meet() -> None:
        barrier.wait(60)  # returns when five have been called

    side.share([meet] * 10)
    side.close()
    assert not barrier.broken


class LateJob:
    """A job that runs when the caller waits for it, after a number of interrupts."""

    def __init__(self, work: Callable[[], None], interrupts: int) -> None:
        self._work, self._interrupts, self._is_done = work, interrupts, False

    def done(self) -> bool:
        return self._is_done

    def exception(self) -> None:
        if self._interrupts:
            self._interrupts -= 1
            raise KeyboardInterrupt
        self._work()
        self._is_done = True

    def result(self) -> None:
        assert self._is_done


def make_late(side: SideThreads, interrupts: int = 0) -> list[LateJob]:
    """Let the side threads run when the caller waits for them, and return their jobs."""
    made: list[LateJob] = []

    def submit(works: list[Callable[[], None]]) -> list[LateJob]:
        made.extend(LateJob(work, interrupts) for work in works)
        return made

    threads: Any = SimpleNamespace(submit=submit, unfinished=made)
    side._threads = threads
    return made


@pytest.mark.parametrize(("count", "threads"), [(1, 0), (2, 1), (3, 1), (4, 2), (8, 4), (50, 4)])
def test_each_side_thread_has_two_callables(count: int, threads: int) -> None:
    side = SideThreads("vitcache-test", 4)
    made = make_late(side)
    side.share([lambda: None] * count)
    assert len(made) == threads


def test_callable_that_fails_stops_the_rest_and_the_side_threads_are_waited_for() -> None:
    side, done = SideThreads("vitcache-test", 4), list[int]()
    made = make_late(side)
    with pytest.raises(OSError, match="planted"):
        side.share([partial(done.append, 0), fail, *[partial(done.append, 2)] * 4])
    assert done == [0]
    assert [job.done() for job in made] == [True] * 3


def test_interrupts_of_the_wait_do_not_end_it() -> None:
    side, done = SideThreads("vitcache-test", 4), list[int]()
    make_late(side, interrupts=3)
    with pytest.raises(KeyboardInterrupt):
        side.run_both(partial(done.append, 1), partial(done.append, 0))
    assert done == [0, 1]


def test_interrupt_at_any_line_leaves_no_callable_that_runs() -> None:
    line, is_interrupted = 1, True
    while is_interrupted:
        side, has_begun, done = SideThreads("vitcache-test", 4), Event(), list[int]()

        def run(has_begun: Event = has_begun, done: list[int] = done) -> None:
            has_begun.set()
            done.append(sum(range(400_000)))

        is_interrupted = interrupt(partial(side.run_both, run, partial(has_begun.wait, 60)), line, FILES)
        assert len(done) == has_begun.is_set(), line
        side.run_both(run, lambda: None)
        side.close()
        line += 1
    assert line > 30


HANGING = """
import os, sys, threading
import torch
from vitcache import DiskTier, EmbeddingCache, WriteBack
from vitcache.tiers import tier_worker

tier_worker.CLOSE_S = 0.05
options = dict(dtype=torch.float32, device="cpu", device_bytes="8MiB", host_bytes="8MiB", weights_name="name")
cache = EmbeddingCache(1024, tiers=[DiskTier(sys.argv[1], "16MiB")], write_back=WriteBack(hits=0), **options)
cache.put(bytes(32), torch.zeros(1024, 1024))
assert cache.flush(60)
cache.evict(bytes(32))
reads = threading.Semaphore(0)

def hang(*arguments):
    reads.release()
    threading.Event().wait()

os.preadv = hang
cache.begin_fetch([bytes(32)], 1024)
for _ in range(2):  # on the tier's thread and on a side thread
    assert reads.acquire(timeout=60)
print("ends")
"""


def test_process_ends_although_reads_hang(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
