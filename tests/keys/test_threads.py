"""`KeyThreads`: keys, modes and streams of a submitted item, failures, cancellation, fork and exit."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch

import vitcache.keys.threads
from vitcache import KeyThreads, Namespace, content_key
from vitcache.keys.threads import KeyedFeature, run_one_here

SECONDS = 60  # limit of each wait: a test that hangs then fails


@pytest.fixture
def threads() -> Iterator[KeyThreads]:
    with KeyThreads(2) as threads:
        yield threads


class Gate:
    """A callable feature. A call blocks until `opened` is set."""

    def __init__(self, feature: Any = b"gate") -> None:
        self.feature = feature
        self.entered, self.opened = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        self.entered.set()
        assert self.opened.wait(SECONDS)
        return self.feature


def test_key_threads_keys_equal_those_of_content_key(threads: KeyThreads) -> None:
    features = [b"a", np.arange(12.0), torch.ones(3).bfloat16(), [b"a", np.ones(2)], torch.rand(600, 700)]
    options: dict[str, Any] = {"namespace": Namespace("n"), "extra": {"grid": [1, 2]}}
    futures = [threads.submit(feature, **options) for feature in features]
    for feature, future in zip(features, futures, strict=True):
        key, loaded = future.result(SECONDS)
        assert key == content_key(feature, **options)
        assert loaded is feature


def test_key_threads_call_a_callable_once_and_return_its_feature(threads: KeyThreads) -> None:
    feature, callers = np.arange(5.0), []

    def load() -> np.ndarray:
        callers.append(threading.current_thread())
        return feature

    keyed = threads.submit(load).result(SECONDS)
    assert keyed == KeyedFeature(content_key(feature), feature)
    assert keyed.feature is feature
    assert len(callers) == 1
    assert callers[0] is not threading.current_thread()


def test_key_threads_run_a_callable_in_the_modes_of_the_submitter(threads: KeyThreads) -> None:
    def load() -> torch.Tensor:
        modes.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return torch.ones(2)

    modes: list[tuple[bool, bool]] = []
    with torch.inference_mode(), torch.autocast("cpu"):
        assert threads.submit(load).result(SECONDS).feature.is_inference()
    assert not threads.submit(load).result(SECONDS).feature.is_inference()
    assert modes == [(True, True), (False, False)]


def test_key_threads_load_num_threads_features_at_once(threads: KeyThreads) -> None:
    gates = [Gate() for _ in range(3)]
    futures = [threads.submit(gate) for gate in gates]
    assert gates[0].entered.wait(SECONDS)
    assert gates[1].entered.wait(SECONDS)
    assert not gates[2].calls
    gates[1].opened.set()
    assert gates[2].entered.wait(SECONDS)
    assert not futures[0].done()
    for gate in gates:
        gate.opened.set()
    assert {future.result(SECONDS).key for future in futures} == {content_key(b"gate")}


def test_key_threads_failed_item_raises_in_its_own_future_only(threads: KeyThreads) -> None:
    error = OSError("cannot read the file")

    def load() -> Any:
        raise error

    failed = [threads.submit(load), threads.submit("photo.jpg"), threads.submit(b"", namespace="n")]  # type: ignore[arg-type]
    healthy = threads.submit(b"a")
    assert failed[0].exception(SECONDS) is error
    for future, match in zip(failed[1:], ("feature must be", "namespace must be bytes"), strict=True):
        with pytest.raises(TypeError, match=match):
            future.result(SECONDS)
    assert healthy.result(SECONDS).key == content_key(b"a")


@pytest.mark.parametrize(
    ("num_items", "expected"), [(1, [4]), (2, [2, 2]), (3, [1, 1, 2]), (4, [1] * 4), (6, [1] * 4)]
)
def test_key_threads_divide_the_hash_threads_among_the_items_of_a_step(
    monkeypatch: pytest.MonkeyPatch, num_items: int, expected: list[int]
) -> None:
    shares, begun, gate = [], threading.Semaphore(0), Gate()

    def record(feature: Any, *, num_threads: int, **options: Any) -> bytes:
        shares.append(num_threads)
        begun.release()
        gate()
        return b""

    monkeypatch.setattr(vitcache.keys.threads, "content_key", record)
    with KeyThreads(4) as threads:
        for _ in range(2):
            futures = threads.submit_many(list(range(num_items)))
            for _ in expected:
                assert begun.acquire(timeout=SECONDS)
            assert sorted(shares) == expected  # the other items wait
            gate.opened.set()
            for future in futures:
                future.result(SECONDS)
            for _ in range(num_items - len(expected)):
                assert begun.acquire(timeout=SECONDS)
            gate.opened.clear()
            shares.clear()


def test_key_threads_hash_with_at_most_num_threads_threads_together(monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, most, lock, rng = [0], [0], threading.Lock(), np.random.default_rng(0)

    def record(feature: bytes, *, num_threads: int, **options: Any) -> bytes:
        with lock:
            hashing[0] += num_threads
            most[0] = max(most[0], hashing[0])
        content_key(feature)
        with lock:
            hashing[0] -= num_threads
        return b""

    monkeypatch.setattr(vitcache.keys.threads, "content_key", record)
    features = [rng.bytes(100_000) for _ in range(7)]
    with KeyThreads(3) as threads:
        for _ in range(30):
            futures = [threads.submit(feature) for feature in features[: rng.integers(1, 8)]]
            futures += threads.submit_many(features[: rng.integers(1, 8)])
            for future in futures:
                future.result(SECONDS)
    assert (most, hashing) == ([3], [0])


def test_key_threads_share_is_returned_when_content_key_raises() -> None:
    with KeyThreads(2) as threads:
        for _ in range(5):
            assert isinstance(threads.submit("photo.jpg").exception(SECONDS), TypeError)
        assert threads.submit(torch.rand(600, 700)).result(SECONDS)


def test_key_threads_submit_many_gives_each_feature_its_extra_and_key(threads: KeyThreads) -> None:
    array = np.ones(3)
    features, extras = (b"a", array, lambda: b"c"), [None, {"grid": 2}, 3]
    done: SimpleQueue[Any] = SimpleQueue()
    futures = threads.submit_many(features, namespace=b"n", extras=extras, on_done=done.put)
    keys = [future.result(SECONDS).key for future in futures]
    loaded = [b"a", array, b"c"]
    expected = [
        content_key(feature, namespace=b"n", extra=extra)
        for feature, extra in zip(loaded, extras, strict=True)
    ]
    assert keys == expected
    assert {done.get(timeout=SECONDS) for _ in futures} == set(futures)
    assert threads.submit_many([]) == []
    without = threads.submit_many([b"a"])
    assert without[0].result(SECONDS).key == content_key(b"a")


def test_key_threads_submit_many_loads_features_in_their_order() -> None:
    loaded: list[int] = []
    with KeyThreads(1) as threads:
        gate = Gate()
        threads.submit(gate)
        assert gate.entered.wait(SECONDS)
        loads = [partial(lambda number: loaded.append(number) or b"", number) for number in range(9)]  # type: ignore[func-returns-value]
        futures = threads.submit_many(loads)
        gate.opened.set()
        for future in futures:
            future.result(SECONDS)
    assert loaded == list(range(9))


@pytest.mark.parametrize(
    ("features", "options", "error", "message"),
    [
        (b"ab", {}, TypeError, "features must be a list or tuple, got bytes"),
        (torch.ones(2), {}, TypeError, "features must be a list or tuple, got Tensor"),
        ([b"a"], {"extras": {"a": 1}}, TypeError, "extras must be a list or tuple, got dict"),
        ([b"a"], {"extras": []}, ValueError, "extras has 0 items, features has 1"),
        ([], {"extras": [None, 1]}, ValueError, "extras has 2 items, features has 0"),
        ([b"a"], {"on_done": 3}, TypeError, "on_done must be callable or None, got int"),
    ],
)
def test_key_threads_submit_many_with_a_bad_argument_queues_no_item(
    threads: KeyThreads, features: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        threads.submit_many(features, **options)
    assert not threads._workers.unfinished
    assert not threads._workers.threads


def test_key_threads_close_cancels_queued_items_and_finishes_running_ones() -> None:
    threads, gate = KeyThreads(1), Gate()
    running, queued = threads.submit(gate), threads.submit(b"a")
    assert gate.entered.wait(SECONDS)
    closer = threading.Thread(target=threads.close)
    closer.start()
    with pytest.raises(CancelledError):
        queued.result(SECONDS)
    assert not running.done()
    gate.opened.set()
    assert running.result(SECONDS).key == content_key(b"gate")
    closer.join(SECONDS)
    threads.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(b"a")


def test_key_threads_item_can_be_cancelled_until_a_thread_starts_it() -> None:
    with KeyThreads(1) as threads:
        gate, cancelled = Gate(), Gate()
        running, queued = threads.submit(gate), threads.submit(cancelled)
        assert gate.entered.wait(SECONDS)
        assert queued.cancel()
        assert not running.cancel()
        gate.opened.set()
    assert not cancelled.calls


def test_key_threads_end_their_workers_when_garbage_collected() -> None:
    threads = KeyThreads(2)
    threads.submit(b"a").result(SECONDS)
    workers = threads._workers.threads
    del threads
    gc.collect()
    for worker in list(workers):
        worker.join(SECONDS)
        assert not worker.is_alive()


def in_child(call: Callable[[], bytes]) -> bytes:
    """Return the result of a call in a forked child, which ends by a signal if the call hangs."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        try:
            os.write(write, call())
        finally:
            os._exit(0)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    with os.fdopen(read, "rb") as pipe:
        return pipe.read()


@pytest.mark.parametrize("is_used", [True, False])
def test_key_threads_made_before_a_fork_hash_in_the_child_and_the_parent(is_used: bool) -> None:
    with KeyThreads(2) as threads:
        if is_used:
            threads.submit(b"a").result(SECONDS)

        def use() -> bytes:
            # All shares are free in the child: each of these items is hashed.
            keys = [future.result(SECONDS).key for future in threads.submit_many([b"a"] * 5)]
            threads.close()
            return b"".join(keys)

        assert [in_child(use) for _ in range(2)] == [content_key(b"a") * 5] * 2
        assert threads.submit(b"a").result(SECONDS).key == content_key(b"a")


def test_key_threads_busy_at_a_fork_fail_their_items_in_the_child_only(threads: KeyThreads) -> None:
    gates, done = [Gate(), Gate()], SimpleQueue()  # type: ignore[var-annotated]
    futures = threads.submit_many([*gates, b"queued"], on_done=done.put)
    for gate in gates:
        assert gate.entered.wait(SECONDS)

    def use() -> bytes:
        errors = {str(future.exception(0)) for future in futures}
        assert [done.get(timeout=0) for _ in futures]
        assert threads.submit(b"a").result(SECONDS).key == content_key(b"a")
        return "\n".join(errors).encode()

    message = in_child(use).decode()
    assert re.fullmatch(
        rf"the job was submitted in process {os.getpid()}: process \d+ lacks its threads", message
    )
    for gate in gates:
        gate.opened.set()
    assert futures[2].result(SECONDS).key == content_key(b"queued")


def test_key_threads_that_forks_inside_a_callable_submits_in_both_processes(threads: KeyThreads) -> None:
    def load() -> bytes:
        return in_child(lambda: threads.submit(b"child").result(SECONDS).key)

    assert threads.submit(load).result(SECONDS).feature == content_key(b"child")
    assert threads.submit(b"a").result(SECONDS).key == content_key(b"a")


@pytest.mark.parametrize("num_threads", [1, 2])
def test_key_threads_callable_that_submits_and_waits_gets_its_keys(num_threads: int) -> None:
    with KeyThreads(num_threads) as threads, KeyThreads(num_threads) as others:

        def load(depth: int) -> bytes:
            owner = others if depth % 2 else threads
            nested = [partial(load, depth - 1)] * 2 if depth else [b"a", b"b"]
            return b"".join(future.result(SECONDS).key for future in owner.submit_many(nested))

        keyed = threads.submit_many([partial(load, 3)] * 3)
        assert {future.result(SECONDS).feature for future in keyed} == {load(3)}


def test_key_threads_closed_in_a_callable_do_not_wait_for_another_callable(threads: KeyThreads) -> None:
    other, started, closed = KeyThreads(1), Gate(), Gate()

    def wait() -> bytes:
        started.opened.set()
        assert closed.opened.wait(SECONDS)
        return b"a"

    def close_other() -> bytes:
        assert started.opened.wait(SECONDS)  # `close` would cancel `wait` otherwise
        other.close()  # does not wait for `wait`, which waits for this callable
        closed.opened.set()
        return b"b"

    waiting = other.submit(wait)
    assert threads.submit(close_other).result(SECONDS).key == content_key(b"b")
    assert waiting.result(SECONDS).key == content_key(b"a")


def test_key_threads_finalizer_that_hashes_while_a_worker_has_all_shares(
    monkeypatch: pytest.MonkeyPatch, threads: KeyThreads
) -> None:
    nested: list[bytes] = []

    def hash_twice(feature: bytes, **options: Any) -> bytes:
        if feature == b"outer":  # here the garbage collector may call a finalizer
            nested.append(threads.submit(b"nested").result(SECONDS).key)
        return content_key(feature)

    monkeypatch.setattr(vitcache.keys.threads, "content_key", hash_twice)
    futures = threads.submit_many([b"outer"] * 4)
    assert {future.result(SECONDS).key for future in futures} == {content_key(b"outer")}
    assert nested == [content_key(b"nested")] * 4


def test_run_one_here_runs_the_first_item_that_no_thread_has_started() -> None:
    with KeyThreads(1) as threads:
        gate, callers = Gate(), []

        def load() -> bytes:
            callers.append(threading.current_thread())
            assert not torch.is_inference_mode_enabled()
            return b"a"

        running, *queued = threads.submit_many([gate, load, load])
        assert gate.entered.wait(SECONDS)
        run_one_here([running, *queued])
        assert callers == [threading.current_thread()]
        assert [future.done() for future in (running, *queued)] == [False, True, False]
        assert queued[0].result(0).key == content_key(b"a")
        gate.opened.set()
        assert queued[1].result(SECONDS).key == content_key(b"a")
        assert len(callers) == 2
        run_one_here([running, *queued])


@pytest.mark.parametrize("last", ["", "raise SystemExit(3)", "import os; os.fork() or sys.exit(); os.wait()"])
def test_key_threads_with_queued_items_let_the_interpreter_exit(last: str) -> None:
    code = (
        "import sys, vitcache\n"
        "threads = vitcache.KeyThreads(1)\n"
        "for _ in range(20): threads.submit(bytes(1 << 20))\n"
        f"{last}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == (3 if "SystemExit" in last else 0), done.stderr
    assert not done.stderr


class FailingStart:
    """`threading.Thread.start` that fails as in a process at its limit of threads, until `fail` is unset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail, self.calls, start = True, 0, threading.Thread.start

        def fail_or_start(thread: threading.Thread) -> None:
            self.calls += 1
            if self.fail:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", fail_or_start)


@pytest.fixture
def failing_start(monkeypatch: pytest.MonkeyPatch) -> FailingStart:
    return FailingStart(monkeypatch)


def test_key_threads_without_a_thread_hash_on_the_callers_thread(failing_start: FailingStart) -> None:
    callers = []

    def load() -> bytes:
        callers.append(threading.current_thread())
        return b"a"

    def fail() -> bytes:
        raise OSError("cannot read the file")

    with KeyThreads(2) as threads:
        loaded, failed, large = (threads.submit(item) for item in (load, fail, torch.rand(600, 700)))
        assert loaded.done()
        assert loaded.result().key == content_key(b"a")
        assert isinstance(failed.exception(), OSError)
        assert large.result().key == content_key(large.result().feature)
        assert callers == [threading.current_thread()]
        failing_start.fail = False
        assert threads.submit(load).result(SECONDS).key == content_key(b"a")
        assert callers[1] is not threading.current_thread()
        assert len(callers) == 2
    assert failing_start.calls == 4


def test_key_threads_second_thread_that_cannot_start_runs_no_item_twice(failing_start: FailingStart) -> None:
    failing_start.fail = False
    gate, later = Gate(), Gate()
    later.opened.set()
    with KeyThreads(2) as threads:
        running = threads.submit(gate)
        assert gate.entered.wait(SECONDS)
        failing_start.fail = True
        assert threads.submit(later).done()
        gate.opened.set()
        failing_start.fail = False
        last = threads.submit(b"last")
        assert last.result(SECONDS).key == content_key(b"last")
        assert running.result(SECONDS).key == content_key(b"gate")
    assert (gate.calls, later.calls) == (1, 1)


def test_key_threads_without_a_thread_keep_no_finished_item(failing_start: FailingStart) -> None:
    with KeyThreads(2) as threads:
        features = [np.zeros(8) for _ in range(5)]
        alive = [weakref.ref(feature) for feature in features]
        for feature in features:
            threads.submit(feature).result()
        features.clear()
        del feature
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        assert not threads._workers.unfinished
        assert threads._workers._queue.qsize() == 0


def test_key_threads_without_a_thread_pass_an_interrupt_on_and_hold_no_lock(
    failing_start: FailingStart,
) -> None:
    def interrupt() -> bytes:
        raise KeyboardInterrupt

    with KeyThreads(1) as threads:
        with pytest.raises(KeyboardInterrupt):
            threads.submit(interrupt)
        failing_start.fail = False
        results: list[bytes] = []
        worker = threading.Thread(target=lambda: results.append(threads.submit(b"a").result(SECONDS).key))
        worker.start()
        worker.join(SECONDS)
        assert results == [content_key(b"a")]
    failing_start.fail = True
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(b"a")
    assert not threads._workers.unfinished


def test_key_threads_without_a_thread_hash_a_step_in_order_until_an_interrupt(
    failing_start: FailingStart,
) -> None:
    loaded: list[int] = []
    done: list[Any] = []

    def load(number: int) -> bytes:
        loaded.append(number)
        if number == 2:
            raise KeyboardInterrupt
        return b"a"

    with KeyThreads(2) as threads:
        with pytest.raises(KeyboardInterrupt):
            threads.submit_many([partial(load, number) for number in range(5)], on_done=done.append)
        assert loaded == [0, 1, 2]
        assert [future.cancelled() for future in done] == [False, False, False, True, True]
        assert not threads._workers.unfinished
        assert threads.submit(b"a").result().key == content_key(b"a")


def test_key_threads_with_too_few_threads_share_a_step_with_the_caller(failing_start: FailingStart) -> None:
    failing_start.fail = False
    gate = Gate()
    features = [bytes([number]) for number in range(20)]
    calls: list[int] = []

    def load(number: int) -> bytes:
        calls.append(number)
        return features[number]

    with KeyThreads(3) as threads:
        running = threads.submit(gate)
        assert gate.entered.wait(SECONDS)
        failing_start.fail = True
        futures = threads.submit_many([partial(load, number) for number in range(20)])
        gate.opened.set()
        keys = [future.result(SECONDS).key for future in futures]
        assert running.result(SECONDS).key == content_key(b"gate")
    assert keys == [content_key(feature) for feature in features]
    assert sorted(calls) == list(range(20))


@pytest.mark.parametrize("error", [RuntimeError("another error"), ValueError("can't start new thread")])
def test_key_threads_other_error_of_a_start_is_raised(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def start(thread: threading.Thread) -> None:
        raise error

    threads = KeyThreads(1)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(type(error), match=str(error)):
        threads.submit(b"a")
    assert not threads._workers.unfinished
    threads.close()


class FakeCuda:
    """Devices with a current stream each. `entered` lists the streams that a thread has made current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, current: int, streams: list[str]) -> None:
        self.entered: list[str] = []
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(streams))
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(streams[device], device))
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: FakeStream("default", device))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.cuda, "device", nullcontext)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.entered.append(f"{stream.name} {stream.device}")
        yield
        self.entered.remove(f"{stream.name} {stream.device}")


class FakeStream:
    cuda_stream = 0

    def __init__(self, name: str, device: int) -> None:
        self.name, self.device = name, device

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FakeStream) and (self.name, self.device) == (other.name, other.device)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("current", "streams", "expected"),
    [
        (0, ["default", "default"], ["default 0"]),
        (1, ["default", "default"], ["default 1"]),
        (0, ["side", "default"], ["side 0"]),
        (0, ["side", "other"], ["other 1", "side 0"]),
        (1, ["default", "side"], ["side 1"]),
    ],
)
def test_key_threads_run_an_item_on_the_streams_of_the_submitter(
    monkeypatch: pytest.MonkeyPatch,
    threads: KeyThreads,
    current: int,
    streams: list[str],
    expected: list[str],
) -> None:
    cuda = FakeCuda(monkeypatch, current=current, streams=streams)
    entered: list[str] = []

    def load() -> bytes:
        entered.extend(cuda.entered)
        return b"a"

    threads.submit(load).result(SECONDS)
    assert entered == expected
    assert not cuda.entered


@pytest.mark.parametrize(
    ("num_threads", "error"),
    [
        (0, ValueError),
        (1025, ValueError),
        (2**63, ValueError),
        (True, TypeError),
        (1.5, TypeError),
        ("2", TypeError),
    ],
)
def test_key_threads_with_invalid_num_threads_raise(num_threads: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="num_threads"):
        KeyThreads(num_threads)


def test_key_threads_default_number_is_at_most_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (3, 3), (64, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        with KeyThreads() as threads:
            assert threads.num_threads == expected
