"""`KeyThreads`: computes the keys of many items in parallel, on worker threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from vitcache.arguments import to_int
from vitcache.device.thread_modes import TorchModes, current_streams
from vitcache.keys.content import content_key
from vitcache.keys.namespace import Namespace

# One core hashes the feature of a 1280x720 image in 9 ms; an H100 encodes the image in 27 ms.
_DEFAULT_THREADS = 4


class KeyedFeature(NamedTuple):
    """A key and its feature: the result of the submitted callable, or the submitted feature itself.

    Examples
    --------
    >>> from vitcache import KeyThreads
    >>> with KeyThreads(1) as threads:
    ...     key, feature = threads.submit(lambda: b"bytes of a PNG file").result()
    >>> feature
    b'bytes of a PNG file'
    """

    key: bytes
    feature: Any


class KeyThreads:
    """Worker threads that load features and compute their keys.

    Submit all items of a step, then read the results in the same order: the threads start the items in the
    order of submission. While few items are unfinished, BLAKE3 hashes each large feature with several
    threads. If the process cannot start a thread, `submit` loads and hashes the item itself.

    Parameters
    ----------
    num_threads
        Number of items that are loaded and hashed in parallel, an int of at least 1. None: 4, or the number
        of cores of this process if that is less.

    Raises
    ------
    TypeError
        If `num_threads` is not an int, or is a bool.
    ValueError
        If `num_threads` is less than 1.

    Examples
    --------
    >>> from vitcache import KeyThreads, content_key
    >>> features = [b"one photo", b"another photo"]
    >>> with KeyThreads(2) as threads:
    ...     futures = [threads.submit(feature) for feature in features]
    ...     keys = [future.result().key for future in futures]
    >>> keys == [content_key(feature) for feature in features]
    True

    Notes
    -----
    Any thread may call any method at any time. In a forked child `submit` raises RuntimeError. At exit the
    interpreter waits for all submitted items, unless `close` or `stop` has cancelled them.

    A callable runs in the submitting thread's modes (grad, inference, autocast, CUDA device) and on its
    current streams. A CUDA feature is hashed after the work that was queued on those streams when it was
    submitted.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is None:
            num_threads = min(_DEFAULT_THREADS, len(os.sched_getaffinity(0)))
        self.num_threads = to_int("num_threads", num_threads, 1)
        self._executor = self._new_executor()
        self._lock = threading.Lock()  # guards `_has_threads` and the replacement of `_executor`
        self._has_threads = False
        self._is_closed = False
        self._unfinished: set[Future[KeyedFeature]] = set()
        self._pid = os.getpid()

    def submit(
        self, feature: Any, *, namespace: bytes | Namespace = b"", extra: Any = None
    ) -> Future[KeyedFeature]:
        """Queue one item for the threads. Does not wait, unless the process cannot start a thread.

        Parameters
        ----------
        feature
            A feature as for `content_key`, or a callable without arguments that loads one. A callable is
            called once, on one of the threads. Do not change `feature` or `extra` until the future is done.
        namespace, extra
            As for `content_key`.

        Returns
        -------
        Future
            Its result is a `KeyedFeature`, which keeps the loaded feature alive. If the callable or
            `content_key` raises, the future raises the same exception. The future can be cancelled until a
            thread starts the item.

        Raises
        ------
        RuntimeError
            If `close` or `stop` was called, the process is a forked child, or the interpreter is exiting.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(f"the threads belong to process {self._pid}, this is process {os.getpid()}")
        share = max(self.num_threads // (len(self._unfinished) + 1), 1)
        future: Future[KeyedFeature] = Future()
        job = _Job(future, feature, namespace, extra, share)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        if not self._queue(job, future):
            job.run(is_caller=True)
        return future

    def _queue(self, job: _Job, future: Future[KeyedFeature]) -> bool:
        """Queue a job for the threads. Return False if the process can start no thread."""
        with self._lock:
            try:
                queued = self._executor.submit(job.run)
            except BaseException as error:
                if not isinstance(error, RuntimeError) or "can't start new thread" not in str(error):
                    future.cancel()
                    raise
                # The executor queued the job before it tried to start a thread. A thread that takes the job
                # later does not run it again. Without any thread, the queue would keep all jobs.
                if not (self._has_threads or self._is_closed):
                    self._executor = self._new_executor()
                return False
            self._has_threads = True
        queued.add_done_callback(partial(_cancel_with, future))
        return True

    def _new_executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.num_threads, "vitcache-keys")

    def stop(self) -> None:
        """Cancel the items that no thread has started, and let the threads end. Does not wait.

        For finalizers, which must not block.
        """
        self._is_closed = True
        if os.getpid() == self._pid:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Cancel the items that no thread has started, wait for the started items, and end the threads.

        A second call does nothing.
        """
        self._is_closed = True
        if os.getpid() == self._pid:
            self._executor.shutdown(cancel_futures=True)

    def __enter__(self) -> KeyThreads:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Job:
    """One submitted item. The first thread that calls `run` hashes it; then the job refers to nothing."""

    def __init__(
        self,
        future: Future[KeyedFeature],
        feature: Any,
        namespace: bytes | Namespace,
        extra: Any,
        num_threads: int,
    ) -> None:
        modes, streams = TorchModes.capture(), current_streams()
        # `pop` is atomic: only one thread gets the arguments.
        self._arguments = [(future, feature, namespace, extra, num_threads, modes, streams)]

    def run(self, *, is_caller: bool = False) -> None:
        """Load and hash the item, unless another thread does. `is_caller`: in the submitting thread."""
        try:
            future, feature, namespace, extra, num_threads, modes, streams = self._arguments.pop()
        except IndexError:
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            with modes.apply(streams):
                loaded = feature() if callable(feature) else feature
                key = content_key(loaded, namespace=namespace, extra=extra, num_threads=num_threads)
        except BaseException as error:
            future.set_exception(error)
            del future  # the traceback of `error` refers to this frame
            if is_caller and not isinstance(error, Exception):
                raise  # an interrupt of the caller
        else:
            future.set_result(KeyedFeature(key, loaded))


def _cancel_with(future: Future[KeyedFeature], queued: Future[None]) -> None:
    """Cancel an item if the executor has removed it from its queue."""
    if queued.cancelled():
        future.cancel()
