"""Prefetch: a worker thread that hashes, moves and encodes what a later chunk will need."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from weakref import WeakSet

Work = Callable[["Prefetch"], None]

logger = logging.getLogger("vitcache.prefetch")

# Steps ahead that wait for the worker; more would be of requests that a scheduler may drop yet.
MOST_WAITING = 16


class Prefetch:
    """Work that was handed to the worker; made by `VisionPipeline.prefetch`. Any thread may use it.

    Attributes
    ----------
    is_refused
        Whether too much work was waiting, so that nothing will be done.
    """

    def __init__(self) -> None:
        self.is_refused = False
        self._cancelled = threading.Event()
        self._future: Future[None] | None = None

    def cancel(self) -> None:
        """Do no more of it; what is being encoded is finished. After its end does nothing."""
        self._cancelled.set()
        if self._future is not None:
            self._future.cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether nothing new shall be begun."""
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        """Whether nothing more will be done."""
        return self._future is None or self._future.done()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until nothing more will be done.

        Raises
        ------
        TimeoutError
            If that takes longer than `timeout_s` seconds.
        """
        if self._future is not None and wait([self._future], timeout_s).not_done:
            raise TimeoutError(f"the prefetch was not done within {timeout_s} s")


class PrefetchWorker:
    """One worker thread, and what waits for it. Any thread may call; only `close` waits for the worker.

    The thread is a daemon, as an interpreter that ends would else wait for all that is queued. At exit it is
    stopped and waited for.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Prefetch, Work] | None] = SimpleQueue()
        self._handles: set[Prefetch] = set()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, work: Work) -> Prefetch:
        """Let the worker do something, unless too much is waiting. What it raises is logged.

        Raises
        ------
        RuntimeError
            If this was closed.
        """
        handle = Prefetch()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pipeline was closed")
            self._handles = {other for other in self._handles if not other.done}
            if len(self._handles) >= MOST_WAITING:
                handle.is_refused = True
                return handle
            if self._thread is None:
                thread = threading.Thread(
                    target=_work, args=(self._queue,), name="vitcache-prefetch", daemon=True
                )
                thread.start()
                self._thread = thread
                _started.add(self)
            handle._future = Future()
            self._handles.add(handle)
            self._queue.put((handle, work))
        return handle

    def close(self) -> None:
        """Cancel everything, and wait for what is under way. A second call does nothing."""
        with self._lock:
            self._closed = True
        self.stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def stop(self) -> None:
        """Cancel everything, and let the thread end; takes no lock and never waits, for finalizers."""
        self._closed = True
        for handle in tuple(self._handles):
            handle.cancel()
        self._queue.put(None)


_started: WeakSet[PrefetchWorker] = WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in tuple(_started):
        worker.close()


def _work(queue: SimpleQueue[tuple[Prefetch, Work] | None]) -> None:
    while (task := queue.get()) is not None:
        handle, work = task
        future = handle._future
        if future is not None and future.set_running_or_notify_cancel():
            try:
                work(handle)
            except BaseException:  # whatever a feature's callable raises: the next prefetch needs this thread
                # The step that needs the items does the work itself, and reports what is wrong with it.
                logger.warning("a prefetch failed", exc_info=True)
            finally:
                future.set_result(None)
        # What it holds must not live until the next one comes.
        del task, handle, work, future
