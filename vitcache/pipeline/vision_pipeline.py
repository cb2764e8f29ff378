"""`VisionPipeline`: from the chunks of a step to its `inputs_embeds`, each item encoded once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor

from vitcache._native import StepPlan, read_requests
from vitcache.arguments import to_int
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.plan_leases import PlanLeases
from vitcache.device.streams import record_event
from vitcache.device.thread_modes import TorchModes
from vitcache.keys.content import content_key
from vitcache.keys.threads import KeyThreads
from vitcache.pipeline.early_start import EarlyStart
from vitcache.pipeline.encoder_runner import Encode, EncoderRunner
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.items import Chunk, Item, check_chunks
from vitcache.pipeline.lookup import (
    Agree,
    agree_on_missing,
    claim_all,
    claim_missing,
    collect_misses,
    hits,
)
from vitcache.pipeline.prefetch import Prefetch, PrefetchWorker
from vitcache.pipeline.prefetch_job import PrefetchJob
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.results import EmbedResult, list_errors
from vitcache.pipeline.row_sources import RowSources, collect_sources
from vitcache.pipeline.shadow import Shadow
from vitcache.pipeline.step_item import Requests, StepItem, wait_until_read
from vitcache.pipeline.step_keys import find_keys, known_key
from vitcache.placement.call_checks import is_traced
from vitcache.placement.destination import Destination
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.placement import Placement
from vitcache.ring.pinned_ring import PinnedRing


class VisionPipeline:
    """Builds `inputs_embeds`: encodes the items of a step that are not in the cache, and places all rows.

    One call of `embed` is one step. In this order, `embed`

    1. checks its arguments, and finds the items that overlap a chunk. Items that overlap no chunk are neither
       loaded nor looked up;
    2. finds the items' keys. Features without a known key are loaded and hashed on threads, and the host
       waits for the keys;
    3. looks up each unique item. For a hit, the step leases the entry, and neither copies nor encodes the
       feature;
    4. claims the missing keys. If another caller is encoding one of these items, the host waits for that
       caller, and then the step looks the items up again;
    5. encodes the missing items in micro-batches, in the order of the batch. While one micro-batch is
       encoded, the features of the next one are copied to the device;
    6. writes the rows of text tokens and of items to `inputs_embeds`, and fresh rows to pages of the cache;
    7. inserts the fresh rows in the cache, and releases the leases and the claims.

    Parameters
    ----------
    encode
        The vision tower: ``encode(features, items)`` with a list of tensors on the cache's device and the
        list of their `Item` objects. It returns one tensor ``(num_rows, row_width)`` per item, in order, or
        one tensor with all rows. It may return the same memory in every call.
    cache
        The cache in which rows are looked up and inserted.
    namespace
        Names everything that the rows depend on, except the item, such as the model; usually
        `Namespace.digest()`. It is part of the keys that the pipeline computes. It is not part of a key that
        is given with an item.
    ring
        The ring that copies features from host memory to the device. None: on CUDA the pipeline makes a ring
        of 128 MiB when it first copies a feature; on the CPU features stay in their memory.
    max_rows_per_encode
        Most rows of one call of `encode`. This bounds the memory that the vision tower needs. An item with
        more rows is encoded alone.
    agree
        For tensor parallel towers, see Notes. ``agree(miss)`` gets a bool tensor on the CPU with one flag per
        unique item without precomputed rows, in the order of the batch. A set flag is a miss. `agree` returns
        a tensor of the same shape. All ranks encode the items whose flags are set in it, usually the items
        that at least one rank misses. `embed` calls `agree` once if the step needs at least one item without
        precomputed rows, else not at all.
    feature_dtype
        bfloat16 or float16: float32 features are rounded to it before the copy, which halves the bytes on
        the bus. None: features keep their dtype.
    stream
        The CUDA stream on which `embed` calls `encode`. Before the encodes, this stream waits for the
        caller's current stream; after them, the caller's current stream waits for this stream. None: the
        caller's current stream. `prefetch` uses its own stream.
    shadow
        Chooses hits that are encoded again, alone, after their cached rows were placed, to compare the rows.
        If a hit is chosen, the host waits for the device. Items without a feature are not chosen. `shadow`
        cannot be combined with `agree`: one rank would encode an item that the other ranks do not encode.

    Raises
    ------
    ValueError
        If `max_rows_per_encode` is less than 1; if `ring` or `stream` is on another device than the cache; or
        if both `agree` and `shadow` are given.
    TypeError
        If `encode` or `agree` is not callable, `cache` is not an `EmbeddingCache`, `namespace` is not bytes,
        `ring` is not a `PinnedRing`, `max_rows_per_encode` is not an int, `feature_dtype` is not bfloat16,
        float16 or None, or `shadow` is not a `Shadow`.

    Notes
    -----
    Errors: if an item cannot be loaded, hashed, copied or encoded, or `encode` returns a wrong number of rows
    for it, its rows are zero and `EmbedResult.errors` contains the cause. The rows of all other items are
    right. If `encode` raises for a micro-batch, its items are encoded one by one.

    Threads: any thread may call any method at any time. `encode` runs in the thread that calls `embed`, or in
    the worker thread of `prefetch`, one call at a time. If a step must encode, it owns the encoder until its
    rows are inserted, and the host waits in other steps that must encode. A step without a miss does not wait
    for the encoder, unless `shadow` chooses one of its hits.

    Streams: `embed` queues its work on the caller's current stream, and the host does not wait for the
    device, with three exceptions. If the ring does not have enough free bytes, the host waits for earlier
    copies. To hash a feature on a GPU, the host waits for its copy to host memory. If `shadow` chooses a hit,
    the host waits for the comparison. On the CPU all work is complete when `embed` returns. Before `embed`
    returns, the host waits until the ring has read the features in host memory; their copies to the device
    may still be in flight.

    Encoded rows are rounded to the cache's dtype before they are placed, so that a miss and a hit give the
    same bits. Gradients are not recorded.

    `agree`: every rank must call `embed` with the same chunks, in the same order, from one thread. A rank
    loads the features of its misses before it calls `agree`. If no rank encodes an item that this rank could
    not load, `EmbedResult.errors` of this rank contains an `ItemError` for it. If the other ranks encode an
    item that this rank cannot load, `embed` raises ValueError. The host does not wait for the owners of
    claims. A failure inside `encode` must occur on all ranks: a rank that leaves a collective encode leaves
    the other ranks waiting.

    Examples
    --------
    A step of 4 tokens; the item's 2 rows belong to tokens 1 and 2. The second call is a hit.

    >>> import torch
    >>> from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline
    >>> def encode(features, items):  # stands for a vision tower
    ...     print("encode", len(items), "item")
    ...     return [feature * 10 for feature in features]
    >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=4096)
    >>> chunk = Chunk([Item(torch.ones(2, 2), Span(1, 2))], start=0, length=4)
    >>> input_ids, weight = torch.tensor([0, 9, 9, 0]), torch.full((1, 2), 0.5)
    >>> with VisionPipeline(encode, cache) as pipeline:
    ...     for _ in range(2):
    ...         inputs_embeds, errors = pipeline.embed([chunk], input_ids, weight)
    encode 1 item
    >>> inputs_embeds.tolist(), errors
    ([[0.5, 0.5], [10.0, 10.0], [10.0, 10.0], [0.5, 0.5]], [])
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
            raise TypeError(f"encode must be callable, got {type(encode).__name__}")
        if not isinstance(cache, EmbeddingCache):
            raise TypeError(f"cache must be an EmbeddingCache, got {type(cache).__name__}")
        if not isinstance(namespace, bytes):
            raise TypeError(f"namespace must be bytes, got {type(namespace).__name__}")
        max_rows_per_encode = to_int("max_rows_per_encode", max_rows_per_encode, 1)
        if feature_dtype not in (None, torch.bfloat16, torch.float16):
            raise TypeError(f"feature_dtype must be bfloat16, float16 or None, got {feature_dtype}")
        if agree is not None and not callable(agree):
            raise TypeError(f"agree must be callable, got {type(agree).__name__}")
        if shadow is not None and not isinstance(shadow, Shadow):
            raise TypeError(f"shadow must be a Shadow, got {type(shadow).__name__}")
        if shadow is not None and agree is not None:
            raise ValueError("agree and shadow cannot be combined: only one rank would encode a hit again")
        if ring is not None and not isinstance(ring, PinnedRing):
            raise TypeError(f"ring must be a PinnedRing, got {type(ring).__name__}")
        for name, owner in (("ring", ring), ("stream", stream)):
            if owner is not None and owner.device != cache.device:
                raise ValueError(f"{name} must be on {cache.device}, the cache's device, got {owner.device}")
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
        find = partial(find_keys, namespace=namespace, threads=self._keys)
        self._job = PrefetchJob(cache, self._runner, self._prefetched, namespace, find)
        self._worker = PrefetchWorker()
        self._is_closed = False
        # The garbage collector may run this finalizer in a thread that holds locks, so it must not wait.
        weakref.finalize(self, _stop_threads, self._worker, self._keys).atexit = False

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
        """Build the `inputs_embeds` of one step, and encode its items that are not in the cache.

        Parameters
        ----------
        chunks
            The chunks of the batch, one or more per request. Chunks must not overlap in the batch. Tokens
            outside of all chunks are text tokens.
        input_ids, weight, out, deepstack, scale, text_scale
            As in `embed_tokens`. `weight` must be on the cache's device. The cache's `row_width` must be
            ``H``, the width of `weight`, or ``H * (1 + L)`` with `deepstack` of ``L`` levels.

        Returns
        -------
        EmbedResult
            `inputs_embeds`, shaped ``input_ids.shape + (H,)``, and one `ItemError` per occurrence of a failed
            item. The rows of failed items are zero; all other rows are right.

        Raises
        ------
        IndexError
            If a chunk ends after the last token, or as `embed_tokens`.
        ValueError
            If chunks overlap in the batch; if spans overlap within a chunk; if the width or the device of
            `weight` does not fit the cache; if `agree` does not return one flag per item, clears the flag of
            a missing item or sets the flag of an item that failed on this rank; or as `embed_tokens`.
        TypeError
            If `chunks` is not a list of `Chunk`, or as `embed_tokens`.
        RuntimeError
            If the pipeline or the cache is closed, or as `embed_tokens`.

        Notes
        -----
        If `embed` raises, the cache contains no wrong rows, and the content of `out` is undefined. After
        `embed` has returned, features in host memory may be overwritten. For new content make a new `Item`,
        because an `Item` stores its key. For the order of the work, threads and streams, see the class.
        """
        if self._is_closed:
            raise RuntimeError("the pipeline was closed")
        cache = self.cache
        _check_weight(weight, cache)
        call = EmbedCall(input_ids, weight, out, deepstack, scale, text_scale)
        if call.destination.width != cache.row_width:
            _refuse_width(call.destination, cache)
        requests = read_requests(chunks, Chunk)
        plan = StepPlan(chunks, requests, self.namespace, call.destination.num_tokens)
        placement = plan.make_placement()
        call.check_spans(placement)
        hashed: Sequence[StepItem] = ()
        if plan.has_unkeyed:
            hashed = self._find_keys(plan, requests)
            placement = plan.make_placement()  # equal items are one item now
        leases = PlanLeases(cache, plan)
        try:
            # A hashed feature may be on its way to the device, even if all items are hits now.
            if hashed or leases.num_hits < len(plan) or self._must_visit_hits(plan, leases):
                return self._embed_items(call, requests, plan, leases, hashed)
            rest = leases.add_sources(placement, call.destination.native)
            with torch.no_grad():
                rows = RowSources(len(plan), leases)
                placed = Placement.from_native(call.destination, placement, rows, rest)
                return EmbedResult(call.run_placed(placed), [])
        finally:
            leases.release()

    def _must_visit_hits(self, plan: StepPlan, leases: PlanLeases) -> bool:
        """Whether a step without a miss has more work than the placement of its hits."""
        return (
            self._agree is not None
            or self._shadow is not None
            or (len(self._prefetched) > 0 and bool(self._prefetched.find_in(plan)))
            or (self.cache.has_host_tier and leases.has_host_hits())
        )

    def _embed_items(
        self,
        call: EmbedCall,
        requests: Requests,
        plan: StepPlan,
        leases: PlanLeases,
        hashed: Sequence[StepItem],
    ) -> EmbedResult:
        """The part of `embed` behind the look-up, for a step with misses or with work on its hits."""
        cache = self.cache
        with ExitStack() as cleanup:
            cleanup.callback(wait_until_read, hashed)
            step_items = collect_misses(plan, requests, leases, hashed)
            moved = [
                step_items.get(number) or StepItem.of(plan, requests, number)
                for number in self._prefetched.find_in(plan)
            ]
            for step_item in moved:
                step_item.take_moved(self._prefetched.take(step_item.identity))
            cleanup.callback(wait_until_read, moved)
            cleanup.callback(wait_until_read, step_items.values())
            if self._agree is None:
                missing = claim_missing(cache, plan, leases, step_items, cleanup)
            else:
                missing = agree_on_missing(self._agree, plan, requests, leases, step_items)
                claim_all(cache, missing, cleanup)
            if missing:
                cleanup.enter_context(self._runner.exclusive())
                with self._on_stream():
                    self._runner.run(missing)
            sources = collect_sources(plan, step_items.values(), leases, cache, self._mover, cleanup)
            store = sources.store()
            placement = plan.make_placement()
            rest = leases.add_sources(placement, call.destination.native)
            with torch.no_grad():
                placed = Placement.from_native(call.destination, placement, sources, rest, store)
                inputs_embeds = call.run_placed(placed, store)
            chosen: list[tuple[StepItem, bytes, Tensor]] = []
            if self._shadow is not None:
                chosen = self._shadow.choose(hits(plan, requests, leases, step_items))
            # Before the insert: a caller that finds the rows may change the features.
            wait_until_read(step_items.values())
            sources.commit(cache)
            if self._shadow is not None and chosen:
                # After the insert: `commit` may read rows in memory that this encode overwrites.
                with nullcontext() if missing else self._runner.exclusive(), self._on_stream():
                    for step_item, key, rows in chosen:
                        cleanup.callback(wait_until_read, [step_item])
                        self._shadow.check(key, rows, partial(self._runner.encode_once_more, step_item))
        return EmbedResult(inputs_embeds, list_errors(step_items.values(), plan))

    def _find_keys(self, plan: StepPlan, requests: Requests) -> list[StepItem]:
        """Find the keys of a step; features start to move as soon as their keys are known."""
        start = EarlyStart(self.cache, self._runner, self._prefetched, self.max_rows_per_encode)
        return find_keys(plan, requests, self.namespace, self._keys, start)

    def key(self, item: Item) -> bytes:
        """Return the key of an item: its `Item.key`, or the key of its content, which the item then stores.

        Raises
        ------
        TypeError
            If `content_key` cannot hash the feature or the `encoder_kwargs`.
        Exception
            If the feature is a function: the exception that the function raises.
        """
        key = known_key(item, self.namespace)
        if key is None:
            feature = item.feature() if callable(item.feature) else item.feature
            key = content_key(feature, namespace=self.namespace, extra=item.encoder_kwargs)
            item.digest = self.namespace, key
        return key

    def prefetch(self, chunks: Sequence[Chunk], *, encode: bool = True) -> Prefetch:
        """Start to hash, copy and encode the items of later chunks on a worker thread, and do not wait.

        Call it after `embed`: the worker then hashes and copies features while the language model runs, and a
        later `embed` finds the rows in the cache. Encodes share the GPU with the language model; on an H100,
        encodes during a prefill saved no time (docs/decisions.md).

        Parameters
        ----------
        chunks
            The later chunks. Their `token_offset` is not used.
        encode
            False: the worker hashes the features and copies them to the device, up to about 256 MiB; `embed`
            encodes them. With `agree` the worker never encodes.

        Returns
        -------
        Prefetch
            A handle. If the request is cancelled, pass the handle to `cancel`. If the pipeline has 16
            unfinished prefetches, a further prefetch is refused: `Prefetch.is_refused` is true, and the
            worker does nothing.

        Raises
        ------
        TypeError
            If `chunks` is not a list of `Chunk`.
        RuntimeError
            If the pipeline is closed.

        Notes
        -----
        The worker skips items that are in the cache, and items that another caller encodes. It uses the
        caller's current device and grad, inference and autocast modes. It queues its work on its own stream,
        which waits for the caller's current stream. Features must not change until the prefetch is done. If
        the worker fails, a later `embed` repeats the work and reports its errors.

        Examples
        --------
        >>> import torch
        >>> from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline
        >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=4096)
        >>> item = Item(torch.ones(2, 2), Span(6, 2))
        >>> with VisionPipeline(lambda features, items: features, cache) as pipeline:
        ...     pipeline.prefetch([Chunk([item], 4, 4)]).wait(60)  # a server does not wait
        ...     pipeline.key(item) in cache
        True
        """
        check_chunks(chunks)
        ready = record_event(self.cache.device)
        work = partial(
            self._job.work, tuple(chunks), encode and self._agree is None, TorchModes.capture(), ready
        )
        return self._worker.submit(work)

    def cancel(self, handle: Prefetch) -> None:
        """Stop a prefetch, and free the features that it moved to the device. Encoded rows stay cached."""
        handle.cancel()
        self._prefetched.drop(handle)

    def close(self) -> None:
        """Cancel every prefetch, wait for the running one, and close the ring that the pipeline made.

        Afterwards `embed` and `prefetch` raise RuntimeError. The cache and the caller's ring stay open. A
        second call does nothing.
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
        """Make `stream` current. It waits for the caller's stream, which waits for `stream` at the end."""
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


def _stop_threads(worker: PrefetchWorker, keys: KeyThreads) -> None:
    worker.stop()
    keys.stop()


def _check_weight(weight: Tensor, cache: EmbeddingCache) -> None:
    if isinstance(weight, Tensor) and weight.device != cache.device:
        raise ValueError(f"weight must be on {cache.device}, the cache's device, got {weight.device}")
    if is_traced(weight):
        raise TypeError(
            f"weight must be a plain tensor, got {type(weight).__name__}, whose rows cannot be read"
        )


def _refuse_width(destination: Destination, cache: EmbeddingCache) -> NoReturn:
    raise ValueError(
        f"the cache has rows of width {cache.row_width}, expected {destination.width} (hidden "
        f"{destination.hidden} x (1 + {destination.levels} deepstack levels))"
    )
