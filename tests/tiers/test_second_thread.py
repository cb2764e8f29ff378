"""The thread beside a disk tier's thread: errors, and threads that cannot be started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from vitcache.device.worker_threads import WorkerThreads
from vitcache.tiers.second_thread import SecondThread


@pytest.fixture(params=["thread", "no thread"])
def second(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondThread]:
    """A second thread, which cannot be started in the second case."""
    if request.param == "no thread":
        monkeypatch.setattr(WorkerThreads, "_start_threads", lambda self: False)
    made = SecondThread()
    yield made
    made.close()


def test_all_callables_have_run_when_the_call_returns(second: SecondThread) -> None:
    done: list[int] = []
    for count in (0, 1, 50):
        second.share([partial(done.append, number) for number in range(count)])
        assert sorted(done) == list(range(count))
        done.clear()


def test_error_of_a_callable_is_raised_by_the_call(second: SecondThread) -> None:
    def fail() -> None:
        raise OSError("planted")

    works: list[Callable[[], None]] = [list, fail, list]
    with pytest.raises(OSError, match="planted"):
        second.share(works)
    with pytest.raises(OSError, match="planted"), second.runs(fail):
        pass
    done: list[int] = []
    second.share([lambda: done.append(1)])
    assert done == [1]


def test_error_of_the_caller_is_raised_after_the_callable_of_the_second_thread(second: SecondThread) -> None:
    done: list[int] = []
    with pytest.raises(KeyError, match="planted"), second.runs(lambda: done.append(2)):
        raise KeyError("planted")
    assert done == [2]
