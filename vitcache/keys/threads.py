"""`KeyThreads`: keys of many items at once, off the thread that needs them."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from vitcache.arguments import to_int
from vitcache.device.thread_modes import TorchModes, current_streams
from vitcache.keys.content import content_key

# One core hashes the feature of a 1280x720 image in a third of its encode's time: 9 of 27 ms beside an H100.
_DEFAULT_THREADS = 4


class KeyedFeature(NamedTuple):
    """A key, and the feature that it is of: what a callable returned, or else what was submitted."""

    key: bytes
    feature: Any


class KeyThreads:
    """Threads that load features and compute their keys.

    Submit all items of a step, then collect the results in the same order: the first are done first. Few
    large features share the threads as well, because BLAKE3 hashes one feature with several.

    Parameters
    ----------
    num_threads
        Items at a time. None: 4, or as many as this process has cores if these are fewer.

    Raises
    ------
    TypeError
        If `num_threads` is no int.
    ValueError
        If it is less than 1.

    Notes
    -----
    Any thread may call anything at any time. A forked child cannot use the threads: RuntimeError. The
    interpreter exits once what was submitted is done, or `close` was called.

    A callable runs in the modes of who submits it (grad, inference, autocast, CUDA device) and on its current
    streams: CUDA features come after the work queued there, and what a callable queues is in order with it.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is None:
            num_threads = min(_DEFAULT_THREADS, len(os.sched_getaffinity(0)))
        self.num_threads = to_int("num_threads", num_threads, 1)
        self._executor = ThreadPoolExecutor(self.num_threads, "vitcache-keys")
        self._unfinished: set[Future[KeyedFeature]] = set()
        self._pid = os.getpid()

    def submit(self, feature: Any, *, namespace: bytes = b"", extra: Any = None) -> Future[KeyedFeature]:
        """Return at once; the future has the key, and the feature loaded.

        Parameters
        ----------
        feature
            As for `content_key`; or a callable without arguments that loads it, which is called once, on one
            of the threads. Neither it nor `extra` may change until the future is done.
        namespace, extra
            As for `content_key`.

        Returns
        -------
        Future
            Raises what the callable or `content_key` raised. It can be cancelled until a thread takes it, and
            keeps the loaded feature alive.

        Raises
        ------
        RuntimeError
            If the threads were closed, or the process was forked, or the interpreter is exiting.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(f"these threads are of process {self._pid}, this is process {os.getpid()}")
        share = max(self.num_threads // (len(self._unfinished) + 1), 1)
        future = self._executor.submit(
            _hash, feature, namespace, extra, share, TorchModes.capture(), current_streams()
        )
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    def stop(self) -> None:
        """Cancel what no thread has taken, and let the threads end; never waits, as a finalizer must not."""
        if os.getpid() == self._pid:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Cancel what no thread has taken, wait for the rest, and end the threads; twice is as once."""
        if os.getpid() == self._pid:
            self._executor.shutdown(cancel_futures=True)

    def __enter__(self) -> KeyThreads:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _hash(
    feature: Any,
    namespace: bytes,
    extra: Any,
    num_threads: int,
    modes: TorchModes,
    streams: list[torch.cuda.Stream],
) -> KeyedFeature:
    with modes.apply(streams):
        loaded = feature() if callable(feature) else feature
        key = content_key(loaded, namespace=namespace, extra=extra, num_threads=num_threads)
    return KeyedFeature(key, loaded)
