"""Prefetch: the worker thread that hashes, copies and encodes the items of later chunks."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any
from weakref import WeakSet

from vitcache.device.jobs import new_future
from vitcache.device.locks import new_lock
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
        Whether the pipeline had too many unfinished prefetches. A refused prefetch does nothing.
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
        self._future: Future[None] | None = None

    def cancel(self) -> None:
        """Stop the prefetch after the micro-batch that is being encoded. Does nothing if it is done already.

        Features that were already moved may stay on the device. `VisionPipeline.cancel` also frees these.
        """
        self.is_cancelled = True
        if self._future is not None:
            self._future.cancel()

    @property
    def done(self) -> bool:
        """Whether the prefetch was finished, cancelled before it began, or refused."""
        return self._future is None or self._future.done()

    def wait(self, timeout_s: float | None = None) -> None:
        """Block the host until the prefetch is done. Its work on the device may still be in flight.

        Raises
        ------
        TimeoutError
            If the prefetch is not done within `timeout_s` seconds. None: no limit.
        """
        if self._future is None:
            return
        try:
            self._future.result(timeout_s)
        except CancelledError:
            return
        except TimeoutError:
            raise TimeoutError(f"the prefetch was not done within {timeout_s} s") from None

    __reduce_ex__ = refuse_copies("it is the handle of one prefetch, and any thread may use it")

    @described
    def __repr__(self) -> str:
        if self.is_refused:
            return "refused"
        state = "done" if self.done else "not done"
        return f"cancelled, {state}" if self.is_cancelled else state


class PrefetchWorker:
    """One worker thread and its queue. Any thread may call any method; only `close` waits for the worker.

    The thread is a daemon: otherwise the interpreter would finish all queued work before it exits. At exit
    the worker is stopped and joined.
    """

    def __init__(self) -> None:
        # Tuples of a handle and its work. An object that is not a tuple ends the thread.
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._end = weakref.ref(self, self._queue.put)  # when this object is freed; see `WorkerThreads`
        self._handles: set[Prefetch] = set()
        self._thread: threading.Thread | None = None
        self._lock = new_lock()
        self._closed = False

    def submit(self, work: Work) -> Prefetch:
        """Queue work for the worker, or refuse it if `MAX_UNFINISHED` prefetches are unfinished.

        Exceptions of the work are logged.

        Raises
        ------
        RuntimeError
            If the worker is closed.
        """
        handle = Prefetch()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pipeline was closed")
            self._handles = {known for known in self._handles if not known.done}
            if len(self._handles) >= MAX_UNFINISHED:
                handle.is_refused = True
                return handle
            if self._thread is None:
                thread = threading.Thread(
                    target=_run_worker, args=(self._queue, self._end), name="vitcache-prefetch", daemon=True
                )
                thread.start()
                self._thread = thread
                _started_workers.add(self)
            handle._future = new_future()
            self._handles.add(handle)
            self._queue.put((handle, work))
        return handle

    def close(self) -> None:
        """Cancel all prefetches, and wait for the running one. A second call does nothing."""
        with self._lock:
            self._closed = True
        self.stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def stop(self) -> None:
        """Cancel all prefetches and end the thread. Takes no lock and never waits, for finalizers."""
        self._closed = True
        for handle in tuple(self._handles):
            handle.cancel()
        self._queue.put(None)


_started_workers: WeakSet[PrefetchWorker] = WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in tuple(_started_workers):
        worker.close()


def _run_worker(queue: SimpleQueue[Any], end: weakref.ref[PrefetchWorker]) -> None:
    while isinstance(task := queue.get(), tuple):
        handle, work = task
        future = handle._future
        if future is not None and future.set_running_or_notify_cancel():
            try:
                work(handle)
            except BaseException:  # a feature's callable may raise SystemExit; the thread must survive
                # The step that needs the items repeats the work, and reports their errors.
                logger.warning("a prefetch failed", exc_info=True)
            finally:
                future.set_result(None)
        # Free the features of this prefetch now: `queue.get` may block for long.
        del task, handle, work, future
