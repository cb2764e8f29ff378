"""`WorkerThreads`: threads that run jobs in the order in which they were queued."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from vitcache._native import current_turn, waits_for_jobs
from vitcache.device.jobs import Job
from vitcache.device.locks import new_lock
from vitcache.device.thread_start import start_threads

_T = TypeVar("_T")

# Of jobs. An object that is not a job ends the thread that takes it.
_Queue = SimpleQueue[Any]

# Limit of one wait for a thread, which then waits again. A signal may arrive just before the operating system
# begins to wait, and Python calls its handler at the end of the wait.
_CHECK_SECONDS = 1.0


class NoThreadError(RuntimeError):
    """The process cannot start a thread."""


class WorkerThreads:
    """Up to `num_threads` threads, which start when jobs need them. Any thread may call any method.

    An interrupt of a call leaves no lock acquired, and no thread that cannot end: the queue is a
    `SimpleQueue`, whose methods an interrupt cannot stop half-way. If `submit` or `queue` raises, its jobs
    are cancelled or done. If `close` or `stop` raises, a second call does the rest.

    The threads end when this object is closed or garbage-collected; in the second case they first run all
    queued jobs, as at exit. A forked child has none of the parent's threads: there the jobs of the parent
    fail at once (`JobLostError`), and later jobs start new threads.

    Parameters
    ----------
    helps
        True: a thread that submits jobs runs them itself if the process cannot start a thread, and if it runs
        a job of any such object, because this job may be the one that the threads must finish first. False:
        only the threads run jobs; `queue` raises NoThreadError if no thread can be started. Their jobs may
        wait for jobs of other objects.
    finishes
        Whether the interpreter waits at exit until all queued jobs are done. False: for jobs that may hang,
        if their submitter waits for them.

    Attributes
    ----------
    unfinished
        All jobs that are queued or run.
    threads
        The threads that were started in this process.
    is_closed
        Whether `close` or `stop` was called.
    """

    def __init__(self, name: str, num_threads: int, *, helps: bool = True, finishes: bool = True) -> None:
        self.num_threads = num_threads
        self.unfinished: set[Job[Any]] = set()
        self.threads: set[threading.Thread] = set()
        self.is_closed = False
        self._name = name
        self._helps = helps
        self._finishes = finishes
        self._starting = new_lock()  # held while threads are started
        self._pid = os.getpid()  # of the process that the threads belong to
        self._make_queue()
        _all.add(weakref.ref(self, _all.discard))

    def _make_queue(self) -> None:
        self._queue: _Queue = SimpleQueue()
        # Ends the threads when this object is freed. The threads keep this reference. A `__del__` would be
        # Python code, which an interrupt can stop before it has done anything.
        self._end = weakref.ref(self, self._queue.put)

    def submit(
        self, works: Sequence[Callable[[], _T]], on_done: Callable[[Future[_T]], object] | None = None
    ) -> list[Future[_T]]:
        """Queue one job for each callable of `works`. See `queue`.

        `on_done` is called with each future as soon as it is done or cancelled, on the thread that does that.
        """
        self._check_open()
        jobs: list[Job[_T]] = []
        try:
            for work in works:
                jobs.append(Job(work))
                if on_done is not None:
                    jobs[-1].add_done_callback(on_done)
            self._run(jobs)
            return list(jobs)
        except BaseException:
            self._cancel(jobs)
            raise

    def queue(self, job: Job[Any]) -> None:
        """Queue a job. Does not wait, unless this thread runs it (see `helps`).

        Raises
        ------
        RuntimeError
            If `close` or `stop` was called, or the interpreter is exiting.
        NoThreadError
            If no thread can be started, and `helps` is false.
        """
        self._check_open()
        try:
            self._run([job])
        except BaseException:
            self._cancel([job])
            raise

    def _check_open(self) -> None:
        self.renew_in_child()
        if self.is_closed or _is_exiting:
            closed = "the interpreter is exiting" if _is_exiting else "close or stop was called"
            raise RuntimeError(f"{self._name}: cannot submit an item after shutdown, {closed}")

    def _run(self, jobs: Sequence[Job[Any]]) -> None:
        for job in jobs:
            self.unfinished.add(job)
            job.add_done_callback(self.unfinished.discard)
        if self._helps and threading.get_ident() in _helpers:
            has_threads = False
        else:
            has_threads = self._start_threads()
            if not has_threads and not self._helps and not self.threads:
                raise NoThreadError(f"{self._name}: the process cannot start a thread")
            if self.threads:
                for job in jobs:
                    self._queue.put(job)
        if not has_threads and self._helps:
            for job in jobs:
                job.run(is_caller=True)  # unless a thread runs it
        if self.is_closed:  # by another thread, which may have cancelled the other jobs before
            self._cancel(jobs)

    def _cancel(self, jobs: Sequence[Job[Any]]) -> None:
        for job in jobs:
            job.cancel()
            if job.done():  # an interrupt may have stopped the call-back that does this
                self.unfinished.discard(job)

    def _start_threads(self) -> bool:
        """Start the threads that the unfinished jobs need. Return False if one cannot be started."""
        needed = min(len(self.unfinished), self.num_threads)
        return len(self.threads) >= needed or start_threads(partial(self._start, needed))

    def _start(self, needed: int) -> None:
        with self._starting:
            while len(self.threads) < needed and not self.is_closed:
                thread = threading.Thread(
                    target=_run_jobs,
                    args=(self._queue, self.threads, self._end, self._helps),
                    name=f"{self._name}-{len(self.threads)}",
                    daemon=True,  # or the interpreter would wait for it before it calls `_finish_all`
                )
                if self._finishes:
                    _queues[thread] = self._queue  # before it starts: `_finish_all` must not miss it
                try:
                    thread.start()
                except BaseException:
                    _queues.pop(thread, None)
                    raise
                self.threads.add(thread)

    def stop(self) -> None:
        """Cancel the jobs that no thread has started, and let the threads end. Takes no lock of its own.

        For finalizers, which must not block.
        """
        self.is_closed = True
        self.renew_in_child()
        try:
            for job in tuple(self.unfinished):
                job.cancel()
        finally:
            self._queue.put(None)

    def close(self) -> None:
        """Cancel the jobs that no thread has started, wait for the started jobs, and end the threads.

        In a job, also of another object, it does not wait: the started jobs may wait for this one. It does
        not wait either if this thread holds a turn, such as the encoder, or a signal handler has interrupted
        it in a method of one of the futures.
        """
        holds_job = any(job.is_locked_here() for job in tuple(self.unfinished))
        self.stop()
        with self._starting:  # later, no thread is started
            threads = tuple(self.threads)
        if not holds_job and not runs_job_here() and current_turn() is None:
            with waits_for_jobs([thread.ident for thread in threads if thread.ident is not None]):
                for thread in threads:
                    while thread.is_alive():
                        thread.join(_CHECK_SECONDS)

    def renew_in_child(self) -> None:
        """Do nothing, or in a forked child: fail the jobs of the parent, and forget its threads."""
        parent, pid = self._pid, os.getpid()
        if pid == parent:
            return
        self._queue.put(None)  # ends this thread if it is one of the parent's, which has forked in a job
        self.threads.clear()
        self._make_queue()
        for job in tuple(self.unfinished):
            job.lose(parent, pid)
        self.unfinished.clear()
        self._pid = pid


_all: set[weakref.ref[WorkerThreads]] = set()  # changed by C functions alone; see `vitcache.device.locks`
_queues: dict[threading.Thread, _Queue] = {}  # of all threads that run, but for `finishes=False`
_workers: set[int] = set()  # idents of the threads that run
_helpers: set[int] = set()  # those whose jobs run the jobs that they submit
_is_exiting = False


def runs_job_here() -> bool:
    """Whether the calling thread runs a job of some `WorkerThreads`: another thread may wait for this job."""
    return threading.get_ident() in _workers


def _run_jobs(
    queue: _Queue, threads: set[threading.Thread], end: weakref.ref[WorkerThreads], helps: bool
) -> None:
    thread, ident = threading.current_thread(), threading.get_ident()
    threads.add(thread)  # now: the first job may ask whether this thread is one of them
    _workers.add(ident)
    if helps:
        _helpers.add(ident)
    while isinstance(job := queue.get(), Job):
        job.run()
        del job  # free its result now: `queue.get` may block for long
    queue.put(None)  # for the next thread
    _helpers.discard(ident)
    _workers.discard(ident)
    _queues.pop(thread, None)


def _renew_all_in_child() -> None:
    ident = threading.get_ident()
    for idents in (_workers, _helpers):
        idents.intersection_update({ident})
    _queues.clear()
    for reference in _all.copy():
        threads = reference()
        if threads is not None:
            threads.renew_in_child()


os.register_at_fork(after_in_child=_renew_all_in_child)


@atexit.register
def _finish_all() -> None:
    """Run all queued jobs, and end their threads."""
    global _is_exiting
    _is_exiting = True
    running = tuple(_queues.items())
    for _, queue in running:
        queue.put(None)
    for thread, _ in running:
        if thread.is_alive():  # or its start was interrupted, and it has no job
            thread.join()
