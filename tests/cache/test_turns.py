"""Turns: one thread at a time, an error in place of a deadlock, nothing kept after an interrupt or a fork."""

from __future__ import annotations

import faulthandler
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from caches import make_cache
from hang_guard import Running, run_in_child, wait_until

from vitcache._native import Turn, acts_for, waits_for_jobs
from vitcache.cache.claims import Claim

KEYS = [bytes([number]) * 32 for number in range(4)]


class Stop(Exception):
    """Raised by signal handlers."""


@contextmanager
def signal_handler(handler: Callable[[], object]) -> Iterator[None]:
    def handle(_: int, __: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def signal_main_thread_when(condition: Callable[[], object]) -> Callable[[], None]:
    """Return a call that sends SIGUSR1 to this thread once a condition is true."""
    main = threading.get_ident()

    def send() -> None:
        wait_until(condition)
        signal.pthread_kill(main, signal.SIGUSR1)

    return send


def stop() -> None:
    raise Stop


def enter(turn: Turn, call: str, act: Callable[[], object] = lambda: None) -> Callable[[], None]:
    def run() -> None:
        with turn.of(call):
            act()

    return run


def test_turn_names_its_holder_until_the_block_ends() -> None:
    turn = Turn("the encoder")
    assert turn.holder is None
    with turn.of("embed"):
        assert turn.holder == "embed"
    assert turn.holder is None


def test_threads_take_a_turn_one_at_a_time_in_the_order_of_their_calls() -> None:
    turn, order = Turn("the encoder"), []
    with turn.of("first"):
        waiting = []
        for number in range(4):
            call = enter(turn, f"call {number}", lambda: order.append(turn.holder))
            waiting.append(Running(call))
            wait_until(lambda count=number + 1: turn.num_waiting == count)
    for running in waiting:
        assert running.results() == [None]
    assert order == [f"call {number}" for number in range(4)]
    assert turn.holder is None


def test_turn_entered_again_by_its_thread_raises_error_that_names_both_calls() -> None:
    turn = Turn("the encoder")
    with turn.of("embed"):
        expected = "^place was called from inside embed, which holds the encoder: it would wait for itself$"
        with pytest.raises(RuntimeError, match=expected):
            enter(turn, "place")()
        assert turn.holder == "embed"
    assert turn.holder is None


def test_use_of_a_turn_that_is_entered_twice_raises_and_leaves_the_turn_once() -> None:
    turn = Turn("the encoder")
    use = turn.of("embed")
    with use, pytest.raises(RuntimeError):
        use.__enter__()
    assert turn.holder is None


def test_two_threads_that_want_each_others_turns_raise_one_error_with_the_calls() -> None:
    left, right = Turn("the left encoder"), Turn("the right encoder")
    barrier = threading.Barrier(2)

    def call(first: Turn, second: Turn, name: str) -> Callable[[], None]:
        def nested() -> None:
            barrier.wait()
            enter(second, f"inner {name}")()

        return enter(first, f"outer {name}", nested)

    results = Running(call(left, right, "a"), call(right, left, "b")).results()
    [error] = [result for result in results if result is not None]
    assert isinstance(error, RuntimeError)
    for part in ("inner", "outer a", "outer b", "would never return", "encoder"):
        assert part in str(error)
    assert (left.holder, right.holder) == (None, None)


def test_chain_of_three_waits_that_would_close_raises() -> None:
    turns = [Turn(f"encoder {number}") for number in range(3)]
    barrier = threading.Barrier(3)

    def call(number: int) -> Callable[[], None]:
        def nested() -> None:
            barrier.wait()
            enter(turns[(number + 1) % 3], f"inner {number}")()

        return enter(turns[number], f"outer {number}", nested)

    results = Running(*map(call, range(3))).results()
    assert len([result for result in results if isinstance(result, RuntimeError)]) == 1
    assert [turn.holder for turn in turns] == [None] * 3


def test_wait_of_a_turn_raises_the_error_of_a_signal_handler() -> None:
    turn, leave = Turn("the encoder"), threading.Event()
    holder = Running(enter(turn, "embed", leave.wait))
    wait_until(lambda: turn.holder)
    sender = Running(signal_main_thread_when(lambda: turn.num_waiting))
    with signal_handler(stop), pytest.raises(Stop):
        enter(turn, "place")()
    assert (turn.holder, turn.num_waiting) == ("embed", 0)
    leave.set()
    assert holder.results() + sender.results() == [None, None]
    assert turn.holder is None


def test_turn_that_becomes_free_while_a_signal_handler_raises_is_free_afterwards() -> None:
    turn, leave = Turn("the encoder"), threading.Event()
    holder = Running(enter(turn, "embed", leave.wait))
    wait_until(lambda: turn.holder)
    sender = Running(signal_main_thread_when(lambda: turn.num_waiting))

    def leave_and_stop() -> None:
        leave.set()
        wait_until(lambda: turn.holder is None)
        assert Running(enter(turn, "of another thread")).results() == [None]
        raise Stop

    with signal_handler(leave_and_stop), pytest.raises(Stop):
        enter(turn, "place")()
    assert (turn.holder, turn.num_waiting) == (None, 0)
    assert holder.results() + sender.results() == [None, None]


def test_signal_handler_takes_another_turn_during_a_wait() -> None:
    turn, other, leave = Turn("the encoder"), Turn("another encoder"), threading.Event()
    holders: list[str | None] = []
    holder = Running(enter(turn, "embed", leave.wait))
    wait_until(lambda: turn.holder)
    sender = Running(signal_main_thread_when(lambda: turn.num_waiting))

    def take_other() -> None:
        enter(other, "handler", lambda: holders.append(other.holder))()
        leave.set()

    with signal_handler(take_other):
        enter(turn, "place", lambda: holders.append(turn.holder))()
    assert holders == ["handler", "place"]
    assert holder.results() + sender.results() == [None, None]


def test_signal_handler_takes_the_turn_that_its_thread_waits_for() -> None:
    turn, held, leave, order = Turn("the encoder"), threading.Event(), threading.Event(), []

    def nested() -> None:
        running.append(Running(leave_when_two_wait))
        enter(turn, "call of the handler", lambda: order.append(turn.holder))()

    def leave_when_two_wait() -> None:
        wait_until(lambda: turn.num_waiting == 2)
        leave.set()

    def wait() -> None:
        held.set()
        leave.wait(60)

    running = [Running(enter(turn, "first", wait))]
    assert held.wait(60)
    faulthandler.dump_traceback_later(60, exit=True)  # the main thread itself would wait for ever
    with signal_handler(nested):
        running.append(Running(signal_main_thread_when(lambda: turn.num_waiting == 1)))
        enter(turn, "second", lambda: order.append(turn.holder))()
    faulthandler.cancel_dump_traceback_later()
    assert order == ["call of the handler", "second"]
    assert [each.results() for each in running] == [[None]] * 3
    assert turn.holder is None


def test_turn_is_not_given_to_a_thread_whose_signal_handler_waits() -> None:
    turn, other, order = Turn("the encoder"), Turn("the decoder"), []
    held, leave = threading.Barrier(3), threading.Event()

    def nested() -> None:
        running.append(Running(leave_when_both_wait))
        enter(other, "call of the handler", lambda: order.append("handler"))()

    def leave_when_both_wait() -> None:
        wait_until(lambda: turn.num_waiting == other.num_waiting == 1)
        leave.set()

    def hold_turn() -> None:
        held.wait(60)
        leave.wait(60)

    def hold_other() -> None:  # and take the turn once it is free, or would be the interrupted thread's
        held.wait(60)
        wait_until(lambda: turn.holder != "first")
        enter(turn, "third", lambda: order.append("third"))()

    running = [Running(enter(turn, "first", hold_turn), enter(other, "second", hold_other))]
    held.wait(60)
    faulthandler.dump_traceback_later(60, exit=True)
    with signal_handler(nested):
        running.append(Running(signal_main_thread_when(lambda: turn.num_waiting == 1)))
        enter(turn, "interrupted", lambda: order.append("interrupted"))()
    faulthandler.cancel_dump_traceback_later()
    assert order == ["third", "handler", "interrupted"]
    assert [each.results() for each in running] == [[None, None], [None], [None]]


def test_turn_is_left_when_its_use_is_freed_without_an_exit() -> None:
    turn = Turn("the encoder")
    use = turn.of("embed")
    use.__enter__()
    assert turn.holder == "embed"
    del use
    gc.collect(0)
    assert turn.holder is None


def test_job_that_waits_for_a_turn_of_its_waiting_submitter_raises() -> None:
    turn, submitter = Turn("the encoder"), threading.get_ident()
    started = threading.Event()

    def job() -> None:
        with acts_for(submitter):
            started.set()
            enter(turn, "embed of the job")()

    with turn.of("embed"):
        running = Running(job)
        assert started.wait(60)
        wait_until(lambda: turn.num_waiting)  # the submitter does not wait yet, so the job may
        with waits_for_jobs():
            [error] = running.results()
        assert turn.holder == "embed"
    assert isinstance(error, RuntimeError)
    assert str(error).startswith("embed of the job would never return: it waits for embed, which holds")


def test_job_that_begins_while_its_submitter_waits_raises_at_once() -> None:
    turn, submitter = Turn("the encoder"), threading.get_ident()

    def job() -> None:
        with acts_for(submitter):
            enter(turn, "embed of the job")()

    with turn.of("embed"), waits_for_jobs():
        [error] = Running(job).results()
    assert isinstance(error, RuntimeError)
    assert str(error).endswith("and waits for a job that this thread runs")


def test_job_of_another_thread_waits_for_a_turn() -> None:
    turn, submitters = Turn("the encoder"), threading.get_ident()

    def job() -> None:
        with acts_for(submitters + 1):
            enter(turn, "embed of the job")()

    with turn.of("embed"), waits_for_jobs():
        running = Running(job)
        wait_until(lambda: turn.num_waiting)
    assert running.results() == [None]


def test_job_that_its_submitter_does_not_wait_for_waits_for_a_turn() -> None:
    turn, submitter = Turn("the encoder"), threading.get_ident()

    def job() -> None:
        with acts_for(submitter):
            enter(turn, "embed of the job")()

    with turn.of("embed"):
        running = Running(job)
        wait_until(lambda: turn.num_waiting)
        with waits_for_jobs([submitter]):
            assert turn.num_waiting == 1
    assert running.results() == [None]


def test_job_that_waits_for_a_thread_that_waits_for_all_jobs_of_it_raises() -> None:
    turn, idents = Turn("the encoder"), []

    def job() -> None:
        idents.append(threading.get_ident())
        with acts_for(0):
            enter(turn, "embed of the job")()

    with turn.of("embed"):
        running = Running(job)
        wait_until(lambda: turn.num_waiting)
        with waits_for_jobs(idents):
            [error] = running.results()
    assert isinstance(error, RuntimeError)
    assert str(error).endswith("and waits for a job that this thread runs")


def test_child_of_fork_finds_turns_and_claims_of_other_threads_free() -> None:
    turn, cache, leave = Turn("the encoder"), make_cache(), threading.Event()
    claims: list[Claim] = []

    def hold() -> None:
        claims.append(cache.claim(KEYS[0]))
        leave.wait()

    holder = Running(enter(turn, "embed", hold))
    wait_until(lambda: claims)
    waiter = Running(enter(turn, "place"))
    wait_until(lambda: turn.num_waiting)
    mine = cache.claim(KEYS[1])
    second = cache.claim(KEYS[0])

    def check() -> None:
        assert (turn.holder, turn.num_waiting) == (None, 0)
        assert second.wait()
        assert not claims[0].is_mine
        assert mine.is_mine
        assert cache.claim(KEYS[0]).is_mine
        enter(turn, "embed in the child")()

    try:
        assert run_in_child(check) == 0
        assert turn.holder == "embed"
        assert claims[0].is_mine
    finally:
        leave.set()
        assert holder.results() + waiter.results() == [None, None]


def test_child_of_fork_keeps_the_turn_of_the_forking_thread_for_two_generations() -> None:
    turn = Turn("the encoder")

    def check() -> None:
        assert turn.holder == "embed"
        assert run_in_child(check_again) == 0

    def check_again() -> None:
        assert turn.holder == "embed"
        with pytest.raises(RuntimeError, match="place was called from inside embed"):
            enter(turn, "place")()

    with turn.of("embed"):
        assert run_in_child(check) == 0


# The thread ends when the interpreter does, with the turn; then an object is freed that wants the turn.
EXIT_WITH_A_TURN = """
import builtins, os, threading, time
from vitcache._native import Turn
turn, held = Turn("the encoder"), threading.Event()

def hold():
    with turn.of("embed"):
        held.set()
        while True:
            time.sleep(0.001)

class Late:
    turn, write = turn, os.write

    def __del__(self):
        try:
            with self.turn.of("stats"):
                pass
        except RuntimeError as error:
            self.write(1, str(error).encode())

threading.Thread(target=hold, daemon=True).start()
held.wait()
builtins.late = Late()
"""


def test_wait_for_a_daemon_thread_at_the_end_of_the_interpreter_raises() -> None:
    command = [sys.executable, "-c", EXIT_WITH_A_TURN]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert process.stdout.startswith("stats would never return: it waits for embed"), process.stderr
    assert process.returncode == 0
