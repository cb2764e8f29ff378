"""`HeldRequests`: a held request stays in SGLang's queue, and no batch takes it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.held_requests import PAUSE_S, HeldRequests


class Arrival:
    """A fetch that a test ends."""

    def __init__(self) -> None:
        self.done = False
        self.waits: list[float] = []
        self.num_finished = 0

    def wait(self, timeout_s: float) -> None:
        self.waits.append(timeout_s)

    def finish(self) -> None:
        self.num_finished += 1


class Scene:
    """Held requests of a scheduler, and a clock that a test moves."""

    def __init__(self, *requests: str) -> None:
        self.now = 100.0
        self.counts = Counts()
        self.held = HeldRequests(self.counts, lambda: self.now)
        self.scheduler = SimpleNamespace(waiting_queue=list(requests))

    def hold(self, request: str, timeout_s: float = 0.1) -> Arrival:
        arrival = Arrival()
        self.held.add(self.find(request), arrival, timeout_s)
        return arrival

    def find(self, request: str) -> Any:
        return next(each for each in self.scheduler.waiting_queue if each == request)

    def visible(self) -> list[str]:
        """The queue that SGLang chooses from."""
        with self.held.choice(self.scheduler):
            return list(self.scheduler.waiting_queue)

    def counted(self) -> tuple[int, int]:
        return self.counts.held, self.counts.late


def test_held_request_is_in_the_queue_but_not_in_the_choice() -> None:
    scene = Scene("a", "b", "c")
    scene.hold("b")
    for _ in range(3):
        assert scene.visible() == ["a", "c"]
        assert scene.scheduler.waiting_queue == ["a", "b", "c"]
    assert scene.counted() == (1, 0)


def test_fetched_request_is_chosen_and_its_keys_are_stored_once() -> None:
    scene = Scene("a", "b")
    arrival = scene.hold("b")
    assert scene.visible() == ["a"]
    arrival.done = True
    for _ in range(2):
        assert scene.visible() == ["a", "b"]
    assert (arrival.num_finished, len(scene.held)) == (1, 0)
    assert scene.counted() == (1, 0)


@pytest.mark.parametrize(("passed", "waits"), [(0.0, True), (0.2499, True), (0.25, False), (7.0, False)])
def test_late_request_is_chosen_when_its_time_is_over(passed: float, waits: bool) -> None:
    scene = Scene("a")
    arrival = scene.hold("a", timeout_s=0.25)
    scene.now += passed
    assert scene.visible() == ([] if waits else ["a"])
    assert arrival.num_finished == int(not waits)
    assert scene.counted() == ((1, 0) if waits else (0, 1))


def test_request_whose_rows_are_there_at_once_has_not_waited() -> None:
    scene = Scene("a", "b")
    scene.hold("a").done = True
    scene.held.add(scene.find("b"), None, 0.1)
    assert scene.visible() == ["a", "b"]
    assert scene.counted() == (0, 0)


def test_aborted_request_is_gone_and_does_not_return() -> None:
    scene = Scene("a", "b", "c")
    scene.hold("b")
    assert scene.visible() == ["a", "c"]
    scene.scheduler.waiting_queue.remove("b")  # as `Scheduler.abort_request`, between two choices
    assert scene.visible() == scene.scheduler.waiting_queue == ["a", "c"]
    scene.now += 1
    scene.visible()
    assert len(scene.held) == 0


def test_chosen_requests_leave_the_queue_and_its_order_stays() -> None:
    scene = Scene(*"abcde")
    scene.hold("b")
    scene.hold("d")
    with scene.held.choice(scene.scheduler):
        assert scene.scheduler.waiting_queue == ["a", "c", "e"]
        # Sorted by a policy, and "a" is chosen.
        scene.scheduler.waiting_queue = [scene.find("e"), scene.find("c")]
    assert scene.scheduler.waiting_queue == ["b", "c", "d", "e"]


def test_request_that_enters_inside_of_a_choice_sees_the_whole_queue() -> None:
    """As one whose grammar is ready, or that is preempted: SGLang may refuse it because of the length."""
    scene = Scene("a", "b")
    scene.hold("a")
    with scene.held.choice(scene.scheduler):
        assert scene.scheduler.waiting_queue == ["b"]
        with scene.held.entry(scene.scheduler):
            assert scene.scheduler.waiting_queue == ["a", "b"]
            scene.scheduler.waiting_queue.append("c")
            scene.hold("c")
        assert scene.scheduler.waiting_queue == ["b"]
    assert scene.scheduler.waiting_queue == ["a", "b", "c"]


def test_request_that_sglang_replaces_by_a_better_one_does_not_return() -> None:
    scene = Scene("a", "b")
    scene.hold("a")
    with scene.held.choice(scene.scheduler), scene.held.entry(scene.scheduler):
        scene.scheduler.waiting_queue.remove("a")
        scene.scheduler.waiting_queue.append("c")
    assert scene.scheduler.waiting_queue == ["b", "c"]


def test_error_of_sglang_leaves_the_queue_whole() -> None:
    scene = Scene("a", "b")
    scene.hold("b")
    with pytest.raises(KeyError), scene.held.choice(scene.scheduler):
        raise KeyError
    assert scene.scheduler.waiting_queue == ["a", "b"]
    with scene.held.entry(scene.scheduler):
        scene.scheduler.waiting_queue.append("c")
    assert scene.scheduler.waiting_queue == ["a", "b", "c"]  # no choice is running any more


def test_pause_waits_for_one_fetch_and_only_while_a_request_is_held() -> None:
    scene = Scene("a", "b", "c")
    scene.held.pause()
    scene.held.add(scene.find("a"), None, 0.1)
    arrivals = [scene.hold("b"), scene.hold("c")]
    scene.held.pause()
    assert [arrival.waits for arrival in arrivals] == [[PAUSE_S], []]
    scene.held.clear()
    scene.held.pause()
    assert arrivals[0].waits == [PAUSE_S]


def test_request_that_enters_again_is_held_for_its_new_fetch() -> None:
    scene = Scene("a")
    scene.hold("a").done = True
    second = scene.hold("a")
    assert scene.visible() == []
    second.done = True
    assert scene.visible() == ["a"]


def test_ranks_hold_a_request_until_none_of_them_waits() -> None:
    ranks = [Scene("a", "b") for _ in range(2)]
    arrivals = [[rank.hold("a"), rank.hold("b")] for rank in ranks]
    flags: list[Sequence[bool]] = []

    def ask(found: Sequence[bool]) -> list[bool]:
        """Both ranks choose in turn: the first one gets the flags of the second one."""
        flags.append(found)
        other = [not arrival.done for arrival in arrivals[1]]
        return [mine or theirs for mine, theirs in zip(found, other, strict=True)]

    ranks[0].held.any_rank = ask
    for arrival in arrivals[0]:
        arrival.done = True
    assert ranks[0].visible() == []
    arrivals[1][1].done = True
    assert ranks[0].visible() == ["b"]
    assert flags == [[False, False], [False, False]]
    assert ranks[0].counted() == (2, 0)


def test_random_queues_equal_those_of_a_scheduler_without_holds() -> None:
    """Arrivals, aborts and choices at random: no request is lost, chosen twice, or chosen while held."""
    rng = random.Random(5)
    for _ in range(60):
        scene, chosen, gone = Scene(), [], []
        arrivals: dict[int, Arrival] = {}
        for number in range(80):
            queue = scene.scheduler.waiting_queue
            event = rng.random()
            if event < 0.4:
                with scene.held.entry(scene.scheduler):
                    scene.scheduler.waiting_queue.append(number)
                    if rng.random() < 0.7:
                        arrivals[number] = Arrival()
                        scene.held.add(number, arrivals[number], rng.choice([0.1, 5]))
            elif event < 0.5 and queue:
                gone.append(queue.pop(rng.randrange(len(queue))))
            elif event < 0.7 and arrivals:
                rng.choice(list(arrivals.values())).done = True
            else:
                before = list(queue)
                with scene.held.choice(scene.scheduler):
                    visible = scene.scheduler.waiting_queue
                    assert visible == [each for each in before if id(each) not in scene.held._holds]
                    taken = visible[: rng.randrange(3)]
                    scene.scheduler.waiting_queue = [each for each in visible if each not in taken]
                chosen += taken
                assert scene.scheduler.waiting_queue == [each for each in before if each not in taken]
            scene.now += 0.02
        everything = chosen + gone + scene.scheduler.waiting_queue
        assert len(everything) == len(set(everything))
        assert scene.counts.held <= len(arrivals)
