"""Prefetch: the worker thread that hashes, copies and encodes the items of later chunks."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from threading import Thread
from weakref import WeakSet

from vitcache._native import current_turn, waits_for_jobs
from vitcache.arguments import to_timeout
from vitcache.cache.fetch import Fetch
from vitcache.device.jobs import Job
from vitcache.device.worker_threads import NoThreadError, WorkerThreads, runs_job_here
from vitcache.handles import described, refuse_copies

Work = Callable[["Prefetch"], None]

logger = logging.getLogger("vitcache.prefetch")

# Most prefetches that are queued or run. The requests of further prefetches may still be cancelled.
MAX_UNFINISHED = 16


class Prefetch:
    """The handle of one prefetch; made by `VisionPipeline.prefetch`. Any thread may use it.

    Attributes
    ----------
    is_refused
        Whether the pipeline had too many unfinished prefetches, or the process could not start the worker. A
        refused prefetch does nothing.
    is_cancelled
        Whether `cancel` was called.

    Examples
    --------
    >>> import torch
    >>> from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline
    >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=4096)
    >>> with VisionPipeline(lambda features, items: features, cache) as pipeline:
    ...     handle = pipeline.prefetch([Chunk([Item(torch.ones(3, 2), Span(0, 3))], 0, 4)])
    ...     handle.wait(timeout_s=60)
    >>> handle.done, len(cache)
    (True, 1)
    """

    def __init__(self) -> None:
        self.is_refused = False
        self.is_cancelled = False
        self._job: Job[None] | None = None
        self._fetches: list[Fetch] = []
        self._threads: set[Thread] = set()  # those of the worker

    def cancel(self) -> None:
        """Stop the prefetch after the micro-batch that is being encoded. Does nothing if it is done already.

        Entries that no tier below the host tier was asked for yet are not fetched, either. Features that were
        already moved may stay on the device. `VisionPipeline.cancel` also frees these.
        """
        self.is_cancelled = True
        if self._job is not None:
            self._job.cancel()
        for fetch in tuple(self._fetches):
            fetch.cancel()

    def _add_fetch(self, fetch: Fetch) -> None:
        """Note a fetch of this prefetch, which `cancel` cancels, too. The worker calls it."""
        self._fetches.append(fetch)
        if self.is_cancelled:  # by another thread, which may not have seen the fetch
            fetch.cancel()

    @property
    def done(self) -> bool:
        """Whether the prefetch was finished, cancelled before it began, or refused."""
        return self._job is None or self._job.done()

    def wait(self, timeout_s: float | None = None) -> None:
        """Block the host until the prefetch is done. Its work on the device may still be in flight.

        Raises
        ------
        TimeoutError
            If the prefetch is not done within `timeout_s` seconds. None: no limit.
        TypeError
            If `timeout_s` is neither a number nor None, or is a bool.
        ValueError
            If `timeout_s` is negative, infinite or NaN.
        RuntimeError
            If the prefetch is not done, and this method is called from inside a prefetch, a callable feature
            on a key thread, or a call of `encode`: the prefetch may wait for its caller. If this process was
            forked after the call of `prefetch`, and so lacks the worker.
        """
        timeout_s = to_timeout("timeout_s", timeout_s)
        job = self._job
        if job is None or job.cancelled():
            return
        caller = current_turn()
        if caller is None and runs_job_here():
            caller = "VisionPipeline.prefetch, or a callable feature of VisionPipeline.embed"
        if caller is not None and not job.done():
            raise RuntimeError(
                f"Prefetch.wait was called from inside {caller}: the prefetch may wait for its end"
            )
        try:
            if timeout_s is not None:
                job.result(timeout_s)
            else:
                with waits_for_jobs([thread.ident for thread in self._threads if thread.ident is not None]):
                    job.result()
        except CancelledError:
            return
        except TimeoutError:
            raise TimeoutError(f"the prefetch was not done within {timeout_s:g} s") from None

    __reduce_ex__ = refuse_copies("it is the handle of one prefetch, and any thread may use it")

    @described
    def __repr__(self) -> str:
        if self.is_refused:
            return "refused"
        state = "done" if self.done else "not done"
        return f"cancelled, {state}" if self.is_cancelled else state


class PrefetchWorker:
    """One worker thread and its queue. Any thread may call any method; only `close` waits for the worker.

    At exit, queued work is cancelled, and the worker is stopped and joined. In a forked child the parent's
    prefetches fail, and a new worker starts with the next prefetch.
    """

    def __init__(self) -> None:
        # A prefetch waits for key threads, so no key thread runs a prefetch.
        self.workers = WorkerThreads("vitcache-prefetch", 1, helps=False)
        self._handles: set[Prefetch] = set()
        _all.add(self)

    def submit(self, work: Work) -> Prefetch:
        """Queue work for the worker.

        The work is refused if `MAX_UNFINISHED` prefetches are unfinished (a few more, if threads submit at
        the same time), or the process cannot start the worker. Exceptions of the work are logged.

        Raises
        ------
        RuntimeError
            If the worker is closed.
        """
        if self.workers.is_closed:
            raise RuntimeError("the pipeline was closed")
        handle = Prefetch()
        for known in tuple(self._handles):
            if known.done:
                self._handles.discard(known)
        if len(self._handles) >= MAX_UNFINISHED:
            handle.is_refused = True
            return handle
        # The caller's own waits for key threads are none for a prefetch.
        job = handle._job = Job(partial(_run, work, handle), submitter_waits=False)
        handle._threads = self.workers.threads
        self._handles.add(handle)
        try:
            self.workers.queue(job)
        except NoThreadError as error:
            handle.is_refused = True
            logger.warning("a prefetch was refused: %s", error)
        return handle

    def close(self) -> None:
        """Cancel all prefetches, and wait for the running one. A second call does nothing.

        In a prefetch, a callable feature on a key thread, and a call of `encode`, it does not wait.
        """
        self.stop()
        self.workers.close()

    def stop(self) -> None:
        """Cancel all prefetches and end the thread. Takes no lock and never waits, for finalizers."""
        self.workers.is_closed = True
        for handle in tuple(self._handles):
            handle.cancel()
        self.workers.stop()


_all: WeakSet[PrefetchWorker] = WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in tuple(_all):
        worker.close()


def _run(work: Work, handle: Prefetch) -> None:
    try:
        work(handle)
    except BaseException:  # a feature's callable may raise SystemExit; the thread must survive
        # The step that needs the items repeats the work, and reports their errors.
        logger.warning("a prefetch failed", exc_info=True)
