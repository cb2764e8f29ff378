"""The threads beside a disk tier's thread: errors, and threads that cannot be started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from threading import Barrier

import pytest

from vitcache.device.worker_threads import WorkerThreads
from vitcache.tiers.side_threads import SideThreads


@pytest.fixture(params=["threads", "no thread"])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SideThreads]:
    """Side threads, which cannot be started in the second case."""
    if request.param == "no thread":
        monkeypatch.setattr(WorkerThreads, "_start_threads", lambda self: False)
    made = SideThreads()
    yield made
    made.close()


def test_all_callables_have_run_when_the_call_returns(side: SideThreads) -> None:
    done: list[int] = []
    for count in (0, 1, 50):
        side.share([partial(done.append, number) for number in range(count)])
        assert sorted(done) == list(range(count))
        done.clear()


def test_error_of_a_callable_is_raised_by_the_call(side: SideThreads) -> None:
    def fail() -> None:
        raise OSError("planted")

    works: list[Callable[[], None]] = [list, fail, list]
    with pytest.raises(OSError, match="planted"):
        side.share(works)
    with pytest.raises(OSError, match="planted"), side.runs(fail):
        pass
    done: list[int] = []
    side.share([lambda: done.append(1)])
    assert done == [1]


def test_error_of_the_caller_is_raised_after_the_callable_beside_it(side: SideThreads) -> None:
    done: list[int] = []
    with pytest.raises(KeyError, match="planted"), side.runs(lambda: done.append(2)):
        raise KeyError("planted")
    assert done == [2]


def test_five_callables_run_at_once() -> None:
    side, barrier = SideThreads(), Barrier(5)

    def meet() -> None:
        barrier.wait(60)  # returns when five have been called

    side.share([meet] * 10)
    side.close()
    assert not barrier.broken


def test_callable_that_fails_stops_the_rest_and_waits_for_those_that_run() -> None:
    side, barrier, done = SideThreads(), Barrier(3), list[int]()

    def fail() -> None:
        barrier.wait(60)
        raise OSError("planted")

    def run() -> None:
        barrier.wait(60)
        done.append(1)

    with pytest.raises(OSError, match="planted"):
        side.share([fail, run, fail, *[partial(done.append, 2)] * 3])
    side.close()
    assert 1 in done
