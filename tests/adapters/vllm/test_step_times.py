"""Times of a worker's steps on a GPU whose events complete when the test says so."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from vitcache.adapters.vllm.counts import Counts
from vitcache.adapters.vllm.step_times import StepTimes


class Clock:
    """A device: an event is recorded at `now`, and is complete once `done` has reached it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = -1.0
        self.num_events = 0

    def make_event(self, *, enable_timing: bool) -> Event:
        assert enable_timing
        self.num_events += 1
        return Event(self)


class Event:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def record(self) -> None:
        self.time = self.clock.now

    def query(self) -> bool:
        return self.time <= self.clock.done

    def elapsed_time(self, end: Event) -> float:
        assert self.query()
        assert end.query()
        return end.time - self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(torch.cuda, "Event", clock.make_event)
    return clock


def load(times: StepTimes, clock: Clock, *, loaded: float, awaited: float, number: int) -> None:
    times.start_loads()
    clock.now = loaded
    times.end_loads(nullcontext())
    clock.now = awaited
    times.await_loads(number)
    times.collect()


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        (5.0, {"loads_hidden": 3}),  # 4 ms before the encoder's stream asks
        (9.01, {"loads_hidden": 3, "load_exposed_seconds": pytest.approx(1e-5)}),
        (11.0, {"loads_exposed": 3, "load_exposed_seconds": pytest.approx(2e-3)}),
    ],
)
def test_loads_are_hidden_if_they_end_before_their_rows_are_wanted(
    loaded: float, expected: dict[str, object], clock: Clock
) -> None:
    counts = Counts()
    times = StepTimes(torch.device("cuda", 0), counts)
    load(times, clock, loaded=loaded, awaited=9.0, number=3)
    assert counts.take() == {}
    clock.done = 12.0
    times.collect()
    assert counts.take() == expected
    assert clock.num_events == 2


def test_encode_time_is_counted_once_with_the_rows_of_the_step(clock: Clock) -> None:
    counts = Counts()
    noted: list[tuple[int, float]] = []
    times = StepTimes(torch.device("cuda", 0), counts, lambda rows, ms: noted.append((rows, ms)))
    clock.now = 1.0
    times.start_encoder()
    clock.now = 28.0
    times.stop_encoder(880)
    clock.now = 30.0
    times.stop_encoder(880)
    times.collect()
    assert (times.encoded_rows, noted) == (0, [])
    clock.done = 29.0
    times.collect()
    assert (counts.take(), times.encoded_rows) == ({"encode_seconds": 0.027}, 880)
    assert noted == [(880, 27.0)]
    assert clock.num_events == 2


def test_encoder_that_saves_nothing_is_not_timed_in_the_next_step(clock: Clock) -> None:
    counts = Counts()
    times = StepTimes(torch.device("cuda", 0), counts)
    times.start_encoder()
    times.collect()
    clock.now = 50.0
    times.stop_encoder(880)
    clock.done = 50.0
    times.collect()
    assert counts.take() == {}


def test_times_are_counted_in_the_order_of_the_steps_while_the_device_is_behind(clock: Clock) -> None:
    counts = Counts()
    times = StepTimes(torch.device("cuda", 0), counts)
    for step in range(4):
        load(times, clock, loaded=10.0 * step + 1, awaited=10.0 * step, number=1)
    for step in range(4):
        clock.done = 10.0 * step + 5
        times.collect()
        assert counts.take() == {"loads_exposed": 1, "load_exposed_seconds": 0.001}
