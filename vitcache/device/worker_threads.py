"""`WorkerThreads`: threads that run jobs in the order in which they were queued."""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from vitcache.device.jobs import Job
from vitcache.device.locks import new_lock

_T = TypeVar("_T")

# Of jobs. An object that is not a job ends the thread that takes it.
_Queue = SimpleQueue[Any]


class WorkerThreads:
    """Up to `num_threads` threads, which start when jobs need them. Any thread may call any method.

    An interrupt of a call leaves no lock acquired, and no thread that cannot end: the queue is a
    `SimpleQueue`, whose methods an interrupt cannot stop half-way. If `submit` raises, its jobs are cancelled
    or done. If `close` or `stop` raises, a second call does the rest.

    If the process cannot start a thread, `submit` runs the jobs itself. The threads belong to the process
    that starts the first of them. They end when this object is closed or garbage-collected; in the second
    case they first run all queued jobs, as at exit.

    Attributes
    ----------
    unfinished
        The futures of all jobs that are queued or run.
    threads
        The threads that were started.
    is_closed
        Whether `close` or `stop` was called.
    """

    def __init__(self, name: str, num_threads: int) -> None:
        self.num_threads = num_threads
        self.unfinished: set[Future[Any]] = set()
        self.threads: set[threading.Thread] = set()
        self._name = name
        self._queue: _Queue = SimpleQueue()
        # Ends the threads when this object is freed. The threads keep this reference. A `__del__` would be
        # Python code, which an interrupt can stop before it has done anything.
        self._end = weakref.ref(self, self._queue.put)
        self._starting = new_lock()  # held while threads are started
        self.is_closed = False
        self._pid: int | None = None  # of the process that started the threads

    def submit(
        self, works: Sequence[Callable[[], _T]], on_done: Callable[[Future[_T]], object] | None = None
    ) -> list[Future[_T]]:
        """Queue one job for each callable of `works`. Does not wait, unless a thread cannot be started.

        `on_done` is called with each future as soon as it is done or cancelled, on the thread that does that.

        Raises
        ------
        RuntimeError
            If the threads belong to another process, or `close` or `stop` was called.
        """
        self._check_open()
        jobs: list[Job[_T]] = []
        try:
            for work in works:
                job = Job(work)
                jobs.append(job)
                if on_done is not None:
                    job.future.add_done_callback(on_done)
                job.future.add_done_callback(self.unfinished.discard)
                self.unfinished.add(job.future)
            has_started = self._start_threads()
            if self.threads:
                for job in jobs:
                    self._queue.put(job)
            if not has_started:
                for job in jobs:
                    job.run(is_caller=True)  # unless a thread runs it
            if self.is_closed:  # by another thread, which may have cancelled the other jobs before
                _cancel(jobs)
            return [job.future for job in jobs]
        except BaseException:
            _cancel(jobs)
            raise

    def _check_open(self) -> None:
        pid = os.getpid()
        if self._pid not in (None, pid):
            raise RuntimeError(f"the threads belong to process {self._pid}, this is process {pid}")
        if self.is_closed or _is_exiting:
            closed = "the interpreter is exiting" if _is_exiting else "close or stop was called"
            raise RuntimeError(f"{self._name}: cannot submit an item after shutdown, {closed}")

    def _start_threads(self) -> bool:
        """Start the threads that the unfinished jobs need. Return False if one cannot be started."""
        needed = min(len(self.unfinished), self.num_threads)
        if len(self.threads) >= needed:
            return True
        self._pid = os.getpid()
        # An interrupt of `Thread.start` can leave a lock acquired, and a thread that is never started. Python
        # raises interrupts in the main thread only, so another thread calls `Thread.start`.
        started: SimpleQueue[BaseException | None] = SimpleQueue()
        try:
            _thread.start_new_thread(self._start, (needed, started))
            failure = started.get()
            if failure is not None:
                raise failure
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            return False
        return True

    def _start(self, needed: int, started: SimpleQueue[BaseException | None]) -> None:
        """Start threads until there are `needed`, and put None, or the exception, into `started`."""
        try:
            with self._starting:
                while len(self.threads) < needed and not self.is_closed:
                    thread = threading.Thread(
                        target=_run_jobs,
                        args=(self._queue, self.threads, self._end),
                        name=f"{self._name}-{len(self.threads)}",
                        daemon=True,  # or the interpreter would wait for it before it calls `_finish_all`
                    )
                    _queues[thread] = self._queue  # before it starts: `_finish_all` must not miss it
                    try:
                        thread.start()
                    except BaseException:
                        del _queues[thread]
                        raise
                    self.threads.add(thread)
            started.put(None)
        except BaseException as error:
            started.put(error)

    def stop(self) -> None:
        """Cancel the jobs that no thread has started, and let the threads end. Takes no lock of its own.

        For finalizers, which must not block.
        """
        self.is_closed = True
        if self._pid in (None, os.getpid()):
            try:
                for future in tuple(self.unfinished):
                    future.cancel()
            finally:
                self._queue.put(None)

    def close(self) -> None:
        """Cancel the jobs that no thread has started, wait for the started jobs, and end the threads.

        In a job of its own, it does not wait.
        """
        self.stop()
        if self._pid == os.getpid():
            with self._starting:  # later, no thread is started
                threads = tuple(self.threads)
            if threading.current_thread() in threads:
                return  # two jobs that close would wait for each other
            for thread in threads:
                thread.join()


def _cancel(jobs: Sequence[Job[_T]]) -> None:
    for job in jobs:
        job.future.cancel()


# All threads that run, with their queues.
_queues: dict[threading.Thread, _Queue] = {}
_is_exiting = False


def _run_jobs(queue: _Queue, threads: set[threading.Thread], end: weakref.ref[WorkerThreads]) -> None:
    thread = threading.current_thread()
    threads.add(thread)  # now: the first job may ask whether this thread is one of them
    while isinstance(job := queue.get(), Job):
        job.run()
        del job  # free its future now: `queue.get` may block for long
    queue.put(None)  # for the next thread
    del _queues[thread]


@atexit.register
def _finish_all() -> None:
    """Run all queued jobs, and end all threads."""
    global _is_exiting
    _is_exiting = True
    running = tuple(_queues.items())
    for _, queue in running:
        queue.put(None)
    for thread, _ in running:
        if thread.is_alive():  # or its start was interrupted, and it has no job
            thread.join()
