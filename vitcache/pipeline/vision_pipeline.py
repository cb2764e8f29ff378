"""The pipeline: from the windows of a step to its `inputs_embeds`, each image encoded once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from vitcache.arguments import to_int
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.streams import record_event
from vitcache.device.thread_modes import TorchModes
from vitcache.keys.content import content_key
from vitcache.keys.threads import KeyThreads
from vitcache.pages.lease import Lease, release_all
from vitcache.pipeline.encoder_runner import Encode, EncoderRunner
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.items import Chunk, Item
from vitcache.pipeline.lookup import Agree, hits, look_up, look_up_together
from vitcache.pipeline.plan import Occurrence, check_chunks, check_windows, plan
from vitcache.pipeline.prefetch import Prefetch, PrefetchWorker
from vitcache.pipeline.prefetch_job import PrefetchJob
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.results import EmbedResult, list_errors
from vitcache.pipeline.row_sources import collect
from vitcache.pipeline.shadow import Shadow
from vitcache.pipeline.step_item import (
    StepItem,
    find_keys,
    known_key,
    merge_equal,
    one_per_object,
    wait_until_read,
)
from vitcache.placement.call_checks import is_traced
from vitcache.placement.destination import Destination
from vitcache.placement.embed_call import EmbedCall
from vitcache.ring.pinned_ring import PinnedRing


class VisionPipeline:
    """Encodes what the windows of a step need and the cache lacks, and builds `inputs_embeds`.

    Parameters
    ----------
    encode
        The vision tower: ``encode(features, items)`` gets features on the cache's device, and returns one
        tensor ``(num_rows, row_width)`` per item, or all rows in one tensor, end to end. It may return the
        same memory at every call. It is called with no lock but the pipeline's, one call at a time.
    cache
        Where rows go, and come from.
    namespace
        What the rows depend on besides the item, usually `Namespace.digest()`: part of the keys made here.
    ring
        What features in host memory go through. None: on CUDA one of 128 MiB is made when it is needed; on
        the CPU they stay where they are.
    max_rows_per_encode
        Rows of one call of `encode`, which bounds the tower's memory. An item with more is encoded alone.
    agree
        For tensor parallel towers: ``agree(miss)`` gets a bool tensor on the CPU with one flag per unique
        item of the batch that has a feature, in its order, and returns which of them all ranks encode: the
        union. It is called once in every `embed` in which such an item overlaps its window.
    feature_dtype
        bfloat16 or float16: what float32 features are rounded to on the way, which halves the bytes on the
        bus.
    stream
        The CUDA stream that `encode` is called on. None: the caller's current one.
    shadow
        Chooses hits whose items are encoded once more, alone, after their cached rows were placed. Such a
        step waits for the device. Items without a feature are not chosen. Not with `agree`: a rank that
        encodes once more would do so alone.

    Raises
    ------
    ValueError
        If a number is too small, the ring or the stream is of another device than the cache, or there are
        both `agree` and `shadow`.
    TypeError
        If an argument is of another type.

    Notes
    -----
    Any thread may call anything at any time. `embed` works on the caller's current stream and waits for
    neither the device nor a copy, except on the CPU and where the ring has no room. It may wait for another
    thread that encodes the very item it needs. Gradients end here.

    With `agree`, every rank must call `embed` with the same chunks in the same order and from one thread.
    Features of what is missing are loaded before it is called: those that no rank can load are errors of
    their items, and a rank that alone cannot raises. What fails in the encoder must fail on all ranks: one
    that leaves a collective encode leaves the others waiting.
    """

    def __init__(
        self,
        encode: Encode,
        cache: EmbeddingCache,
        *,
        namespace: bytes = b"",
        ring: PinnedRing | None = None,
        max_rows_per_encode: int = 16384,
        agree: Agree | None = None,
        feature_dtype: torch.dtype | None = None,
        stream: torch.cuda.Stream | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        if not callable(encode):
            raise TypeError(f"encode must be callable, it is {type(encode).__name__}")
        if not isinstance(cache, EmbeddingCache):
            raise TypeError(f"cache must be an EmbeddingCache, it is {type(cache).__name__}")
        if not isinstance(namespace, bytes):
            raise TypeError(f"namespace must be bytes, it is {type(namespace).__name__}")
        max_rows_per_encode = to_int("max_rows_per_encode", max_rows_per_encode, 1)
        if feature_dtype not in (None, torch.bfloat16, torch.float16):
            raise TypeError(f"feature_dtype is {feature_dtype}, it must be bfloat16, float16 or None")
        if agree is not None and not callable(agree):
            raise TypeError(f"agree must be callable, it is {type(agree).__name__}")
        if shadow is not None and not isinstance(shadow, Shadow):
            raise TypeError(f"shadow must be a Shadow, it is {type(shadow).__name__}")
        if shadow is not None and agree is not None:
            raise ValueError(
                "there are both agree and shadow: a rank that encodes once more would do so alone"
            )
        if ring is not None and not isinstance(ring, PinnedRing):
            raise TypeError(f"ring must be a PinnedRing, it is {type(ring).__name__}")
        for name, owner in (("ring", ring), ("stream", stream)):
            if owner is not None and owner.device != cache.device:
                raise ValueError(f"the {name} is of {owner.device}, the cache of {cache.device}")
        self.cache = cache
        self.namespace = namespace
        self.max_rows_per_encode = max_rows_per_encode
        self.stream = stream
        self._agree = agree
        self._shadow = shadow
        self._mover = FeatureMover(cache.device, ring, feature_dtype)
        self._runner = EncoderRunner(encode, cache, self._mover, max_rows_per_encode)
        self._prefetched = PrefetchedFeatures()
        self._keys = KeyThreads()
        self._find_step_items = partial(_find_step_items, namespace, self._keys)
        self._job = PrefetchJob(cache, self._runner, self._prefetched, self._find_step_items)
        self._worker = PrefetchWorker()
        self._is_closed = False
        # In whatever thread the collector runs, with whatever locks it holds: it must not wait.
        weakref.finalize(self, _stop, self._worker, self._keys).atexit = False

    def embed(
        self,
        chunks: Sequence[Chunk],
        input_ids: Tensor,
        weight: Tensor,
        *,
        out: Tensor | None = None,
        deepstack: Tensor | None = None,
        scale: float | None = None,
        text_scale: float | None = None,
    ) -> EmbedResult:
        """Build the `inputs_embeds` of a step, and encode what that takes.

        Parameters
        ----------
        chunks
            One per request, or more. Their windows must not overlap in the batch; what lies outside of them
            is text.
        input_ids, weight, out, deepstack, scale, text_scale
            As in `embed_tokens`.

        Returns
        -------
        EmbedResult
            `inputs_embeds`, and an error per occurrence of an item that could not be loaded, hashed or
            encoded, or whose encode gave another number of rows. Its rows are zero; all others are right.

        Raises
        ------
        IndexError
            If a window ends behind the tokens.
        ValueError
            If windows overlap, or spans within one; if the cache's rows are of another width or device than
            the destination; if `agree` returns other flags than it may.
        TypeError, RuntimeError
            As `embed_tokens`; RuntimeError also if the pipeline or the cache was closed.

        Notes
        -----
        Where it raises, nothing wrong is cached, and `out` holds no defined rows. When it returns, features
        in host memory have been read, and may change; but an `Item` remembers the key of what it had.
        """
        if self._is_closed:
            raise RuntimeError("the pipeline was closed")
        check_chunks(chunks)
        _check_weight(weight, self.cache)
        call = EmbedCall(input_ids, weight, out, deepstack, scale, text_scale)
        _check_width(call.destination, self.cache)
        check_windows(chunks, input_ids.numel())
        occurrences = plan(chunks)
        call.check_spans([occurrence.spans for occurrence in occurrences])
        step_items = self._find_step_items(occurrences)
        leases: list[Lease] = []
        with ExitStack() as held:
            held.callback(release_all, leases)
            for step_item in step_items:
                step_item.take_moved(self._prefetched.take(step_item.identity))
            held.callback(wait_until_read, step_items)
            if self._agree is None:
                missing = look_up(self.cache, step_items, leases, held)
            else:
                missing = look_up_together(self.cache, step_items, leases, held, self._agree)
            if missing:
                held.enter_context(self._runner.exclusive())
                with self._on_stream():
                    self._runner.run(missing)
            sources = collect(step_items, self.cache, self._mover, held)
            with torch.no_grad():
                inputs_embeds = call.run(sources.embeddings, sources.spans, sources.store)
            chosen: list[tuple[StepItem, bytes, Tensor]] = []
            if self._shadow is not None:
                chosen = self._shadow.choose(hits(one for one in step_items if one.item.feature is not None))
            # Whoever finds the rows may change the features, by what this method promises.
            wait_until_read(step_items)
            sources.commit(self.cache, leases)
            if self._shadow is not None and chosen:
                # Only now, as the encoder may write over rows that were to be entered.
                with nullcontext() if missing else self._runner.exclusive(), self._on_stream():
                    for step_item, key, rows in chosen:
                        self._shadow.check(key, rows, partial(self._runner.encode_once_more, step_item))
        return EmbedResult(inputs_embeds, list_errors(step_items))

    def key(self, item: Item) -> bytes:
        """Return the key of an item: its own, or that of its content, which it remembers.

        Raises
        ------
        TypeError
            If the feature cannot be hashed.
        Exception
            What a callable feature raises.
        """
        key = known_key(item, self.namespace)
        if key is None:
            feature = item.feature() if callable(item.feature) else item.feature
            key = content_key(feature, namespace=self.namespace, extra=item.encoder_kwargs)
            item.digest = self.namespace, key
        return key

    def prefetch(self, chunks: Sequence[Chunk], *, encode: bool = True) -> Prefetch:
        """Begin to hash, move and encode what later chunks need, on a worker thread; never waits.

        Parameters
        ----------
        chunks
            Their `token_offset` does not matter.
        encode
            False: features are hashed and moved to the device only, where they wait for `embed`. So it is in
            a pipeline with `agree`, too.

        Returns
        -------
        Prefetch
            To be cancelled by `cancel` when the request is dropped. It is refused, and does nothing, while
            much other work waits.

        Raises
        ------
        TypeError
            If `chunks` is no list of chunks.
        RuntimeError
            If the pipeline was closed.

        Notes
        -----
        The worker takes over the caller's device and its grad, inference and autocast modes, and works on a
        stream of its own, behind the caller's current one. Features must not change until the prefetch is
        done. What fails there is tried again by `embed`, which reports it.
        """
        check_chunks(chunks)
        ready = record_event(self.cache.device)
        work = partial(self._job.work, chunks, encode and self._agree is None, TorchModes.capture(), ready)
        return self._worker.submit(work)

    def cancel(self, handle: Prefetch) -> None:
        """Do no more for a prefetch, and free what it moved to the device. What it encoded stays cached."""
        handle.cancel()
        self._prefetched.drop(handle)

    def close(self) -> None:
        """Cancel every prefetch, wait for the one under way, and close the ring that was made here.

        A second call does nothing; `embed` and `prefetch` raise RuntimeError from then on.
        """
        self._is_closed = True
        self._worker.close()
        self._keys.close()
        self._prefetched.clear()
        self._mover.close()

    def __enter__(self) -> VisionPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Make the encoder's stream current: ordered behind the one that was, and that one behind it."""
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.cache.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)


def _find_step_items(
    namespace: bytes, threads: KeyThreads, occurrences: Sequence[Occurrence]
) -> list[StepItem]:
    step_items = one_per_object(occurrences)
    find_keys(step_items, namespace, threads)
    return merge_equal(step_items)


def _stop(worker: PrefetchWorker, keys: KeyThreads) -> None:
    worker.stop()
    keys.stop()


def _check_weight(weight: Tensor, cache: EmbeddingCache) -> None:
    if isinstance(weight, Tensor) and weight.device != cache.device:
        raise ValueError(f"weight is on {weight.device}, the cache is on {cache.device}")
    if is_traced(weight):
        raise TypeError(
            f"weight is a {type(weight).__name__}, whose rows cannot be read: pass a plain tensor"
        )


def _check_width(destination: Destination, cache: EmbeddingCache) -> None:
    if destination.width != cache.row_width:
        raise ValueError(
            f"the destination takes rows of width {destination.width} (hidden {destination.hidden} x (1 + "
            f"{destination.levels} deepstack levels)), those of the cache have {cache.row_width}"
        )
