"""`KeyThreads`: computes the keys of many items in parallel, on worker threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from vitcache.arguments import to_int
from vitcache.device.jobs import Job
from vitcache.device.thread_modes import TorchModes, current_streams
from vitcache.device.worker_threads import WorkerThreads
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.keys.content import content_key
from vitcache.keys.hash_shares import HashShares
from vitcache.keys.namespace import Namespace

# One core hashes the feature of a 1280x720 image in 9 ms; an H100 encodes the image in 27 ms.
_DEFAULT_THREADS = 4
MAX_THREADS = 1024


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

    Submit all items of a step in one call of `submit_many`, in the order in which the step needs them: the
    threads start the items in this order. Many items are hashed by one thread each. If fewer items than
    threads are left, BLAKE3 hashes each large feature with several threads. Together, all items are never
    hashed by more than `num_threads` threads. If the process cannot start a thread, `submit` and
    `submit_many` load and hash the items themselves. They do so, too, in a callable that one of these threads
    runs, or a thread of another `KeyThreads`: these threads may wait for this callable.

    An interrupt, such as KeyboardInterrupt, may be raised at any point of `submit`, `submit_many`, `close`
    and `Future.result`. It leaves no lock acquired and no thread that cannot end. Other threads can submit
    items and get their keys. If `submit` or `submit_many` raises, its items are cancelled, except those that
    a thread has started. If `close` raises, a second call does the rest; `on_done` may not have been called
    with the item that was being cancelled. In early versions of Python 3.14, an interrupt can leave any lock
    acquired (see `vitcache.device.jobs`).

    Parameters
    ----------
    num_threads
        Number of items that are loaded in parallel, and of threads that hash, an int from 1 to 1024. None: 4,
        or the number of cores of this process if that is less.

    Raises
    ------
    TypeError
        If `num_threads` is not an int, or is a bool.
    ValueError
        If `num_threads` is less than 1 or more than 1024.

    Examples
    --------
    >>> from vitcache import KeyThreads, content_key
    >>> features = [b"one photo", b"another photo"]
    >>> with KeyThreads(2) as threads:
    ...     futures = threads.submit_many(features)
    ...     keys = [future.result().key for future in futures]
    >>> keys == [content_key(feature) for feature in features]
    True

    Notes
    -----
    Any thread may call any method at any time, also in a signal handler or a finalizer. The threads start
    with the first items. At exit the interpreter waits for all submitted items, unless `close` or `stop` has
    cancelled them. In a forked child, the unfinished items of the parent fail at once with a RuntimeError
    that names both processes, and new threads start with the first items that are submitted there.

    Items wait for all items that were submitted before. So a callable must not wait for an item that another
    thread has submitted: with one thread, neither would end. A `VisionPipeline` has one `KeyThreads` for its
    steps and its prefetches. A step that has waited for a free thread for 1 s, because the features of a
    prefetch load slowly, loads and hashes its items itself.

    A callable runs in the submitting thread's modes (grad, inference, autocast, CUDA device) and on its
    current streams. A CUDA feature is hashed after the work that was queued on those streams when it was
    submitted.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is None:
            num_threads = min(_DEFAULT_THREADS, len(os.sched_getaffinity(0)))
        self.num_threads = to_int("num_threads", num_threads, 1, MAX_THREADS)
        self._workers = WorkerThreads("vitcache-keys", self.num_threads)
        self._shares = HashShares(self._workers)

    def submit(
        self, feature: Any, *, namespace: bytes | Namespace = b"", extra: Any = None
    ) -> Future[KeyedFeature]:
        """Queue one item for the threads. Does not wait, unless it hashes the item itself; see the class.

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
            If `close` or `stop` was called, or the interpreter is exiting.
        """
        [future] = self.submit_many([feature], namespace=namespace, extras=[extra])
        return future

    def submit_many(
        self,
        features: Sequence[Any],
        *,
        namespace: bytes | Namespace = b"",
        extras: Sequence[Any] | None = None,
        on_done: Callable[[Future[KeyedFeature]], object] | None = None,
    ) -> list[Future[KeyedFeature]]:
        """Queue the items of a step for the threads, which start them in the order of `features`.

        Parameters
        ----------
        features
            A list or tuple of features, each as in `submit`. Put the features that are needed first in front.
        namespace
            As in `submit`, for all items.
        extras
            A list or tuple with the `extra` of each item, as in `submit`. None: no item has one.
        on_done
            Called with each future as soon as it is done or cancelled, on the thread that does that. It must
            not block.

        Returns
        -------
        list of Future
            One future for each feature, in the same order, as `submit` returns it.

        Raises
        ------
        TypeError
            If `features` or `extras` is not a list or tuple, or `on_done` cannot be called. No item is
            queued.
        ValueError
            If `extras` has another length than `features`. No item is queued.
        RuntimeError
            As `submit`.

        Examples
        --------
        >>> from queue import SimpleQueue
        >>> from vitcache import KeyThreads
        >>> done = SimpleQueue()
        >>> with KeyThreads(2) as threads:
        ...     futures = threads.submit_many([b"one photo", b"another photo"], on_done=done.put)
        ...     in_order_of_completion = [done.get() for _ in futures]
        >>> set(in_order_of_completion) == set(futures)
        True
        """
        _check_list("features", features)
        if extras is None:
            extras = [None] * len(features)
        _check_list("extras", extras)
        if len(extras) != len(features):
            raise ValueError(f"extras has {len(extras)} items, features has {len(features)}")
        if on_done is not None and not callable(on_done):
            raise TypeError(f"on_done must be callable or None, got {type(on_done).__qualname__}")
        modes = _Modes(threading.get_ident(), TorchModes.capture(), current_streams())
        hash_item = partial(_hash_item, self._shares, modes, namespace)
        works = [partial(hash_item, feature, extra) for feature, extra in zip(features, extras, strict=True)]
        return self._workers.submit(works, on_done)

    def stop(self) -> None:
        """Cancel the items that no thread has started, and let the threads end. Does not wait.

        For finalizers, which must not block.
        """
        self._workers.stop()

    def close(self) -> None:
        """Cancel the items that no thread has started, wait for the started items, and end the threads.

        A second call does nothing. In a callable of an item, `close` does not wait.
        """
        self._workers.close()

    def __enter__(self) -> KeyThreads:
        if self._workers.is_closed:
            raise RuntimeError("close or stop of these key threads was called")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    __reduce_ex__ = refuse_copies("it owns threads; make another `KeyThreads`")

    @described
    def __repr__(self) -> str:
        state = "closed" if self._workers.is_closed else f"{len(self._workers.unfinished)} unfinished"
        return f"{describe_count(self.num_threads, 'thread')}, {state}"


def _check_list(name: str, value: object) -> None:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list or tuple, got {type(value).__qualname__}")


def run_one_here(futures: Iterable[Future[KeyedFeature]]) -> None:
    """Load and hash the first of some submitted items that no thread has started, in the calling thread.

    For a caller that waits for all of them, and finds no thread free.
    """
    for future in futures:
        if isinstance(future, Job) and not future.running() and not future.done():
            future.run(is_caller=True)
            return


class _Modes(NamedTuple):
    """The modes and streams of a submitting thread."""

    thread: int
    modes: TorchModes
    streams: Sequence[Any]

    def apply(self) -> AbstractContextManager[None]:
        # The submitting thread has these modes. Entering them can be interrupted in the main thread, which
        # could then keep one of them.
        return nullcontext() if threading.get_ident() == self.thread else self.modes.apply(self.streams)


def _hash_item(
    shares: HashShares, modes: _Modes, namespace: bytes | Namespace, feature: Any, extra: Any
) -> KeyedFeature:
    """Load and hash one item."""
    with modes.apply():
        loaded = feature() if callable(feature) else feature
        with shares.share() as num_threads:
            key = content_key(loaded, namespace=namespace, extra=extra, num_threads=num_threads)
    return KeyedFeature(key, loaded)
