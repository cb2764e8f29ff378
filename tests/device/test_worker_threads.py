"""`WorkerThreads`: order, interrupts at every line, threads that cannot start, forks and exits."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hang_guard import text_in_child
from interrupts import act_at, interrupt

from vitcache.device import jobs, thread_start, worker_threads
from vitcache.device.worker_threads import WorkerThreads

SECONDS = 60  # limit of each wait: a test that hangs then fails
START = threading.Thread.start
FILES = {worker_threads.__file__, thread_start.__file__, jobs.__file__, concurrent.futures._base.__file__}


def run_in_thread(call: Callable[[], object]) -> None:
    """Run a call in another thread, which would wait for ever for a lock that this thread still holds."""
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(call()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert done, "the call has raised, or it waits"


def submit_many(threads: WorkerThreads, gate: threading.Event) -> list[Future[bool]]:
    return threads.submit([lambda: gate.wait(SECONDS)] * 5, on_done=lambda future: None)


def submit_and_wait(threads: WorkerThreads, gate: threading.Event) -> None:
    gate.set()
    for future in threads.submit([lambda: 1] * 3):
        assert future.result(SECONDS) == 1


def close(threads: WorkerThreads, gate: threading.Event) -> None:
    running, *queued = threads.submit([lambda: gate.wait(SECONDS), *[lambda: True] * 4])
    gate.set()
    threads.close()
    for future in queued:
        assert future.done()
    assert running.done()


def refuse_start(thread: threading.Thread) -> None:
    if thread.name.startswith("test"):
        raise RuntimeError("can't start new thread")
    START(thread)


@pytest.mark.parametrize(
    ("call", "can_start"),
    [(submit_many, True), (submit_and_wait, True), (submit_and_wait, False), (close, True)],
)
def test_worker_threads_interrupted_at_any_line_leave_no_lock_and_no_thread(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., object], can_start: bool
) -> None:
    if not can_start:
        monkeypatch.setattr(threading.Thread, "start", refuse_start)
    before = set(threading.enumerate())
    line, is_interrupted = 1, True
    while is_interrupted:
        threads, gate = WorkerThreads("test", 2), threading.Event()
        is_interrupted = interrupt(partial(call, threads, gate), line, FILES)
        gate.set()
        if call is not close:
            run_in_thread(partial(submit_and_wait, threads, gate))
        run_in_thread(threads.close)
        started = set(threading.enumerate()) - before
        for thread in started:
            thread.join(SECONDS)
            assert not thread.is_alive(), line
        assert not [thread for thread in worker_threads._queues if thread.name.startswith("test")], line
        gc.collect(1)  # or an object of this round would be finalized in a later, traced round
        line += 1
    assert line > 30


@pytest.mark.parametrize("handler_closes", [False, True])
@pytest.mark.parametrize("call", [submit_and_wait, close])
def test_worker_threads_with_a_signal_handler_at_any_line_that_calls_them_end(
    call: Callable[..., object], handler_closes: bool
) -> None:
    line, is_called = 1, True
    while is_called:
        threads, gate = WorkerThreads("test", 2), threading.Event()

        def handle(threads: WorkerThreads = threads, gate: threading.Event = gate) -> None:
            gate.set()  # the call of `close` below waits for the job that waits for it
            if handler_closes:
                threads.close()
            elif not threads.is_closed:
                assert [future.result(SECONDS) for future in threads.submit([lambda: 5] * 3)] == [5] * 3

        def run(threads: WorkerThreads = threads, gate: threading.Event = gate) -> None:
            with suppress(CancelledError):
                try:
                    call(threads, gate)
                except RuntimeError as error:
                    if "close or stop was called" not in str(error) or not handler_closes:
                        raise

        is_called = interrupt(run, line, FILES, handle)
        run_in_thread(lambda threads=threads: [threads.close()])
        assert not threads.unfinished, line
        line += 1
    assert line > 30
    assert not [thread for thread in worker_threads._queues if thread.name.startswith("test")]


def test_worker_threads_interrupted_submit_cancels_the_jobs_that_have_not_begun() -> None:
    line, is_interrupted = 1, True
    while is_interrupted:
        threads, gate = WorkerThreads("test", 2), threading.Event()
        begun: list[int] = []
        done: list[Future[None]] = []

        def work(begun: list[int] = begun, gate: threading.Event = gate) -> None:
            begun.append(1)
            gate.wait(SECONDS)

        is_interrupted = interrupt(
            partial(threads.submit, [work] * 6, on_done=done.append),
            line,
            {worker_threads.__file__, thread_start.__file__, jobs.__file__},
        )
        if is_interrupted:
            last = threads.submit([lambda: 1])[0]
            gate.set()
            assert last.result(SECONDS) == 1
            assert len(begun) <= 2, line
        gate.set()
        threads.close()
        assert all(future.done() for future in done), line
        assert not threads.unfinished, line
        line += 1
    assert line > 40


def test_future_of_a_job_gives_its_lock_to_with_in_one_instruction() -> None:
    condition = jobs._Condition()
    assert type(condition.__enter__).__name__ == "builtin_function_or_method"
    with condition:
        assert condition._is_owned()  # type: ignore[attr-defined]
        assert not condition.wait(0.001)
        condition.notify_all()
    assert not condition._is_owned()  # type: ignore[attr-defined]
    [future] = (threads := WorkerThreads("test", 1)).submit([lambda: 1])
    assert type(future._condition) is jobs._Condition
    assert future.result(SECONDS) == 1
    threads.close()


def test_worker_threads_start_outside_of_the_main_thread_which_interrupts_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starters: list[int] = []

    def start(thread: threading.Thread) -> None:
        starters.append(threading.get_ident())
        START(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    threads = WorkerThreads("test", 2)
    for future in threads.submit([lambda: 1] * 4):
        assert future.result(SECONDS) == 1
    threads.close()
    assert len(starters) == 2
    assert threading.main_thread().ident not in starters


@pytest.mark.parametrize("message", ["can't start new thread", "another error"])
def test_worker_threads_without_any_thread_run_the_jobs_or_raise(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def start_new_thread(*arguments: object) -> int:
        raise RuntimeError(message)

    monkeypatch.setattr("_thread.start_new_thread", start_new_thread)
    threads = WorkerThreads("test", 2)
    if message == "another error":
        with pytest.raises(RuntimeError, match=message):
            threads.submit([lambda: 1])
    else:
        [future] = threads.submit([threading.get_ident])
        assert future.result(0) == threading.get_ident()
    assert not threads.unfinished
    assert not threads.threads
    threads.close()


def test_worker_threads_run_jobs_in_order_and_start_no_needless_thread() -> None:
    order: list[int] = []
    threads = WorkerThreads("test", 3)
    for number in range(5):
        [future] = threads.submit([partial(order.append, number)])
        future.result(SECONDS)
        while threads.unfinished:  # the future is done shortly before it leaves the set
            pass
    assert order == list(range(5))
    assert len(threads.threads) == 1
    threads.close()


def test_worker_threads_closed_by_another_thread_during_a_submit_cancel_the_jobs() -> None:
    threads = WorkerThreads("test", 1)

    def works() -> Any:
        yield lambda: 1
        run_in_thread(threads.close)
        yield lambda: 2

    for future in threads.submit(works()):
        with pytest.raises(CancelledError):
            future.result(SECONDS)
    with pytest.raises(RuntimeError, match="close or stop was called"):
        threads.submit([lambda: 1])


def test_worker_threads_that_nobody_refers_to_run_their_queued_jobs_and_end() -> None:
    gate = threading.Event()
    threads = WorkerThreads("test", 1)
    futures = threads.submit([lambda: gate.wait(SECONDS), lambda: True])
    started = set(threads.threads)
    del threads
    gc.collect()
    gate.set()
    assert [future.result(SECONDS) for future in futures] == [True, True]
    for thread in started:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_worker_threads_keep_no_finished_job_alive() -> None:
    class Feature:
        pass

    threads, feature = WorkerThreads("test", 1), Feature()
    alive = weakref.ref(feature)
    [future] = threads.submit([partial(id, feature)])
    future.result(SECONDS)
    threads.submit([lambda: 1])[0].result(SECONDS)
    del feature, future
    gc.collect()
    assert alive() is None
    threads.close()


def test_worker_threads_close_in_a_job_does_not_wait_for_itself() -> None:
    threads = WorkerThreads("test", 1)
    [future] = threads.submit([threads.close])
    assert future.result(SECONDS) is None


def test_worker_threads_closed_in_two_jobs_at_once_do_not_wait_for_each_other() -> None:
    threads, both = WorkerThreads("test", 2), threading.Barrier(2)

    def close_with_the_other() -> None:
        both.wait(SECONDS)
        threads.close()

    for future in threads.submit([close_with_the_other] * 2):
        assert future.result(SECONDS) is None
    threads.close()


def test_worker_threads_are_known_before_they_run_so_that_an_exit_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: list[bool] = []

    def start(thread: threading.Thread) -> None:
        known.append(thread in worker_threads._queues)
        START(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    threads = WorkerThreads("test", 1)
    assert threads.submit([lambda: 1])[0].result(SECONDS) == 1
    assert known == [True]
    threads.close()
    assert not [thread for thread in worker_threads._queues if thread.name.startswith("test")]


@pytest.mark.parametrize("is_used", [True, False])
def test_worker_threads_made_before_a_fork_start_in_each_child(is_used: bool) -> None:
    threads = WorkerThreads("test", 2)
    if is_used:
        assert threads.submit([lambda: 3])[0].result(SECONDS) == 3

    def use() -> int:
        result = threads.submit([lambda: 3])[0].result(SECONDS)
        threads.close()
        return result

    assert [text_in_child(use) for _ in range(3)] == ["3", "3", "3"]
    assert use() == 3
    assert text_in_child(use).endswith("close or stop was called")


def test_worker_threads_close_in_a_child_does_not_wait_for_threads_of_the_parent() -> None:
    threads, gate = WorkerThreads("test", 1), threading.Event()
    running = threads.submit([lambda: gate.wait(SECONDS)])[0]
    assert text_in_child(threads.close) == "None"
    gate.set()
    assert running.result(SECONDS)
    threads.close()


def test_worker_threads_child_forked_by_a_signal_handler_in_a_submit_gets_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The child lacks the thread that starts the threads, and must not wait for it."""
    threads, start = WorkerThreads("test", 1), thread_start._thread.start_new_thread
    texts: list[str] = []

    def start_and_fork(*arguments: Any) -> int:
        may_start = threading.Event()

        def start_later() -> None:
            may_start.wait(SECONDS)
            arguments[0](*arguments[1])

        start(start_later, ())
        child = os.fork()
        if child == 0:
            return 0
        may_start.set()
        texts.append(str(os.waitpid(child, 0)[1]))
        return 0

    monkeypatch.setattr(thread_start._thread, "start_new_thread", start_and_fork)
    pid = os.getpid()
    code = 1
    try:
        [future] = threads.submit([lambda: 3])
        if os.getpid() == pid:
            assert future.result(SECONDS) == 3
        else:
            code = 0 if isinstance(future.exception(SECONDS), jobs.JobLostError) else 2
    finally:
        if os.getpid() != pid:
            os._exit(code)
    assert texts == ["0"]
    threads.close()


def test_worker_threads_start_in_a_finalizer_while_the_starter_holds_its_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, results, nested = WorkerThreads("test", 3), [], [1]  # type: ignore[var-annotated]

    def start(thread: threading.Thread) -> None:
        if thread.name == "test-0" and nested:  # here the garbage collector may call a finalizer
            nested.pop()
            results.extend(future.result(SECONDS) for future in threads.submit([lambda: 1] * 2))
        START(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    run_in_thread(lambda: threads.submit([lambda: 2])[0].result(SECONDS))
    assert results == [1, 1]
    run_in_thread(lambda: [threads.close()])


def test_worker_threads_that_do_not_help_refuse_a_job_if_no_thread_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, job = WorkerThreads("test", 1, helps=False), jobs.Job(lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_start)
        with pytest.raises(worker_threads.NoThreadError, match="test: the process cannot start a thread"):
            threads.queue(job)
    assert job.cancelled()
    assert not threads.unfinished
    threads.queue(job := jobs.Job(lambda: 2))
    assert job.result(SECONDS) == 2
    threads.close()


def test_worker_threads_beyond_the_stacks_that_fit_into_memory_run_the_jobs_here() -> None:
    before = threading.stack_size(1 << 46)  # no thread with such a stack can be started
    try:
        threads = WorkerThreads("test", 2)
        [future] = threads.submit([threading.get_ident])
        assert future.result(0) == threading.get_ident()
    finally:
        threading.stack_size(before)
    assert threads.submit([threading.get_ident])[0].result(SECONDS) != threading.get_ident()
    threads.close()


@pytest.mark.parametrize("method", ["result", "exception"])
@pytest.mark.parametrize("line", range(1, 7))
def test_job_completed_by_a_signal_handler_at_any_line_of_a_wait_ends_it(line: int, method: str) -> None:
    job: jobs.Job[int] = jobs.Job(lambda: 1)
    run_in_thread(lambda: [act_at(getattr(job, method), line, {jobs.__file__}, job.run)])
    assert job.done()


def test_job_that_is_late_raises_and_one_that_raises_timeout_error_is_done() -> None:
    def fail() -> None:
        raise TimeoutError("of the callable")

    job = jobs.Job(fail)
    for call in (job.result, job.exception):
        with pytest.raises(TimeoutError, match=r"^$"):
            call(0.001)
    job.run()
    assert str(job.exception()) == "of the callable"
    with pytest.raises(TimeoutError, match="of the callable"):
        job.result()


@pytest.mark.parametrize("drops", [False, True])
def test_worker_threads_run_all_submitted_jobs_before_the_interpreter_exits(drops: bool) -> None:
    code = (
        "import os, zlib\n"
        "from vitcache.device.worker_threads import WorkerThreads\n"
        "threads = WorkerThreads('test', 2)\n"
        "threads.submit([lambda: (zlib.crc32(bytes(1 << 22)), os.write(1, b'done '))] * 7)\n"
        f"{'del threads' if drops else ''}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["done"] * 7, "")


def test_worker_threads_refuse_jobs_while_the_interpreter_exits() -> None:
    code = (
        "import atexit\n"
        "def submit():\n"
        "    try:\n"
        "        threads.submit([print])\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
        "atexit.register(submit)\n"  # runs behind the handler that is registered after it
        "from vitcache.device.worker_threads import WorkerThreads\n"
        "threads = WorkerThreads('test', 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "test: cannot submit an item after shutdown, the interpreter is exiting\n"
    assert (done.returncode, done.stderr) == (0, "")
