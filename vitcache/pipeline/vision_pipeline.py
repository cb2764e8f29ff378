"""`VisionPipeline`: from the chunks of a step to its `inputs_embeds`, each item encoded once."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vitcache.arguments import INT64_MAX, check_bool, to_bytes, to_int
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.streams import record_event
from vitcache.device.thread_modes import TorchModes
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.keys.content import content_key
from vitcache.keys.folding import fold_tenant
from vitcache.keys.namespace import Namespace, tenant_of, to_namespace
from vitcache.keys.threads import KeyThreads
from vitcache.pipeline.agreed_items import Agree
from vitcache.pipeline.encoder_runner import Encode, EncoderRunner
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.items import Chunk, Item, check_chunks
from vitcache.pipeline.kept_rows import KeptRows
from vitcache.pipeline.pipeline_arguments import (
    check_handle,
    check_item,
    check_options,
    check_tenant,
    refuse_tensor,
)
from vitcache.pipeline.prefetch import Prefetch, PrefetchWorker
from vitcache.pipeline.prefetch_job import PrefetchJob
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.rank_states import RankStates
from vitcache.pipeline.results import EmbedResult
from vitcache.pipeline.shadow import Shadow
from vitcache.pipeline.step_keys import known_key, namespace_of
from vitcache.pipeline.step_runner import StepRunner
from vitcache.placement.call_checks import is_traced
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.scatter_call import ScatterCall
from vitcache.ring.pinned_ring import PinnedRing
from vitcache.tracing import traced

# Two images of 1920x1080 in Qwen3-VL. With more rows, more features are copied before the first encode
# begins, and the ring must be larger (docs/decisions.md).
MAX_ROWS_PER_ENCODE = 4096


class Steps(Protocol):
    """Runs the steps of a pipeline: a `StepRunner`, or an object that stands in for one."""

    def run(self, call: EmbedCall | ScatterCall, chunks: Sequence[Chunk]) -> EmbedResult:
        """As `StepRunner.run`."""


class VisionPipeline:
    """Builds `inputs_embeds`: encodes the items of a step that are not in the cache, and places all rows.

    One call of `embed` or `place` is one step. They differ in the text tokens: `embed` looks their rows up in
    an embedding table, and `place` leaves them alone. In this order, a step

    1. checks its arguments, and finds the items that overlap a chunk. Items that overlap no chunk are neither
       loaded nor looked up;
    2. finds the items' keys. The namespace is folded into given keys once per `Items` object. Features
       without a key are loaded and hashed on threads, and the host waits for the keys;
    3. looks up each unique item. For a hit, the step leases the entry, and neither copies nor encodes the
       feature;
    4. claims the missing keys. If another caller is encoding one of these items, the host waits for that
       caller, and then the step looks the items up again;
    5. encodes the missing items in micro-batches, in the order of the batch. While one micro-batch is
       encoded, the features of the next one are copied to the device;
    6. writes the rows of items, and in `embed` those of text tokens, to `inputs_embeds`, and fresh rows to
       pages of the cache;
    7. inserts the fresh rows in the cache, and releases the leases and the claims. If the cache rejects the
       rows of an unfinished request, they are kept until its last chunk is placed.

    Parameters
    ----------
    encode
        The vision tower: ``encode(features, items)`` with a list of tensors on the cache's device and the
        list of their `Item` objects. A feature that is not moved (`move_features`) is any object. `encode`
        returns one tensor ``(num_rows, row_width)`` per item, in order, or one tensor with all rows, if all
        have one width. It may return the same memory in every call.
    cache
        The cache in which rows are looked up and inserted.
    namespace
        Names everything that the rows depend on, except the item, such as the model: a `Namespace`, or
        bytes. It is part of the keys that the pipeline computes, and is folded into the keys that are given
        with items, except keys with `Item.complete_key`.
    ring
        The ring that copies features from host memory to the device. None: on CUDA the pipeline makes a ring
        of 256 MiB when it first copies a feature; on the CPU features stay in their memory. If a ring is
        too small for the features of two micro-batches, some of the next micro-batch's features are copied
        after the call of `encode`, not before it.
    max_rows_per_encode
        Most rows of one call of `encode`. This bounds the memory that the vision tower needs. An item with
        more rows is encoded alone. The features of a step's first micro-batch are copied before any encode
        begins, so a smaller number hides more of the copies.
    agree
        For tensor parallel towers, see Notes. ``agree(miss)`` gets a bool tensor on the CPU with one flag per
        unique item without precomputed rows, in the order of the batch. A set flag is a miss. `agree` returns
        a tensor of the same shape. All ranks encode the items whose flags are set in it, usually the items
        that at least one rank misses. `embed` calls `agree` once if the step needs at least one item without
        precomputed rows, else not at all.
    feature_dtype
        bfloat16 or float16: float32 features are rounded to it before the copy, which halves the bytes on
        the bus. None: features keep their dtype. Features of items with ``move_feature=False`` keep theirs.
    stream
        The CUDA stream on which `embed` calls `encode`. Before the encodes, this stream waits for the
        caller's current stream; after them, the caller's current stream waits for this stream. None: the
        caller's current stream. `prefetch` uses its own stream.
    shadow
        Chooses hits that are encoded again, alone, after their cached rows were placed, to compare the rows.
        If a hit is chosen, the host waits for the device. Items without a feature are not chosen. `shadow`
        cannot be combined with `agree`: one rank would encode an item that the other ranks do not encode.
    move_features
        False: features reach `encode` unchanged, neither moved nor cast: tensors on any device, arrays and
        any other object. A callable is still called, and `encode` gets its value. An object that
        `content_key` cannot hash needs `Item.key`. True: `Item.move_feature` says it for each item.
    keep_bytes
        Most bytes of rows that the cache rejected and that are kept for the next chunks of their requests, an
        int or a str such as ``"256MiB"``; 0: none. They are on the cache's device, outside of its budget.
        Rows belong to an `Items` object: pass one `Items` object to all chunks of a request. They are dropped
        if a chunk that reaches the end of the item's last span is placed, if the `Items` object dies, and in
        the first step after `advance_epoch` or `clear` of the cache. If `keep_bytes` are in use, further rows
        are not kept, and their items are encoded in each chunk that needs them.
    tenant
        The tenant of items without `Item.tenant`. None: `Namespace.tenant` of `namespace`, or ``""``. A
        tenant that is not that of `namespace` is folded into all keys.

    Raises
    ------
    ValueError
        If `max_rows_per_encode` is less than 1 or beyond 64 bits; if `keep_bytes` is negative or not a size
        in bytes; if `ring` or `stream` is on another device than the cache; if both `agree` and `shadow` are
        given; or if `feature_dtype` is given and `move_features` is False.
    TypeError
        If `encode` or `agree` is not callable, `cache` is not an `EmbeddingCache`, `namespace` is neither
        bytes nor a `Namespace`, `ring` is not a `PinnedRing`, `max_rows_per_encode` is not an int,
        `feature_dtype` is not bfloat16, float16 or None, `stream` is not a `torch.cuda.Stream`, `shadow` is
        not a `Shadow`, `move_features` is not a bool, `keep_bytes` is neither an int nor a str, or `tenant`
        is neither a str nor None. A bool is not an int.

    Notes
    -----
    Errors: if an item cannot be loaded, hashed, copied or encoded, or `encode` returns a wrong number of rows
    for it, its rows are zero and `EmbedResult.errors` contains the cause. The rows of all other items are
    right. If `encode` raises for a micro-batch, its items are encoded one by one. Every `Exception` is the
    item's error. `asyncio.CancelledError`, `KeyboardInterrupt`, `SystemExit` and `GeneratorExit` pass
    through: the step raises them, and leaves no lease, claim or reservation. The worker of `prefetch` logs
    them.

    Threads: any thread may call any method at any time. `encode` runs in the thread that calls `embed`, or in
    the worker thread of `prefetch`, one call at a time. If a step must encode, it owns the encoder until its
    rows are inserted, and the host waits in other steps that must encode. A step without a miss does not wait
    for the encoder, unless `shadow` chooses one of its hits.

    Call-backs: `encode`, `agree`, a callable feature, the report of a `shadow`, a signal handler and a
    `__del__` may call any method. If the call needs the encoder, or the claim of an item, and would wait for
    its own thread, it raises RuntimeError, which names both calls. If `encode` lets this error pass, it is
    the error of the item. A signal handler that raises leaves no lease, claim, reservation or lock.

    Fork: a pipeline of the CPU works in a forked child, used before or not. Prefetches of the parent are lost
    there, and `Prefetch.wait` says so.

    Streams: `embed` queues its work on the caller's current stream, and the host does not wait for the
    device, with three exceptions. If the ring does not have enough free bytes, the host waits for earlier
    copies. To hash a feature on a GPU, the host waits for its copy to host memory. If `shadow` chooses a hit,
    the host waits for the comparison. On the CPU all work is complete when `embed` returns. Before `embed`
    returns, the host waits until the ring has read the features in host memory; their copies to the device
    may still be in flight.

    Encoded rows are rounded to the cache's dtype before they are placed, so that a miss and a hit give the
    same bits. Gradients are not recorded.

    `agree`: every rank must call `embed` with the same chunks, in the same order, from one thread. A rank
    loads the features of its misses before it calls `agree`. The host does not wait for the owners of claims.
    A failure inside `encode` must occur on all ranks: a rank that leaves a collective encode leaves the other
    ranks waiting. If one rank alone cannot load, hash or copy an item, the result depends on `agree`:

    - The object that `agree_over` returns also shares failures. The item fails on all ranks, and no rank
      encodes it; on the other ranks, the cause is a RuntimeError. Its equals in the step fail with it, unless
      each rank can hash it. The pipeline calls its method ``states`` in place of the object, with one state
      for each place of an item in the chunks, precomputed ones included: once per step, once more if an item
      failed, and once, with one state per item, before each call of `encode`.
    - Any other callable is called once per step. If the other ranks encode the item, `embed` raises
      ValueError; if not, `EmbedResult.errors` of this rank alone contains an `ItemError` for it.

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
        namespace: bytes | Namespace = b"",
        ring: PinnedRing | None = None,
        max_rows_per_encode: int = MAX_ROWS_PER_ENCODE,
        agree: Agree | None = None,
        feature_dtype: torch.dtype | None = None,
        stream: torch.cuda.Stream | None = None,
        shadow: Shadow | None = None,
        move_features: bool = True,
        keep_bytes: int | str = 256 << 20,
        tenant: str | None = None,
    ) -> None:
        self.namespace = to_namespace(namespace)
        self.tenant = tenant_of(namespace)
        if tenant is not None and check_tenant(tenant) != self.tenant:
            self.namespace, self.tenant = fold_tenant(self.namespace, tenant), tenant
        self.max_rows_per_encode = max_rows = to_int("max_rows_per_encode", max_rows_per_encode, 1, INT64_MAX)
        keep_bytes = to_bytes("keep_bytes", keep_bytes, 0)
        check_options(encode, cache, ring, agree, feature_dtype, stream, shadow, move_features)
        self.cache = cache
        self.stream = stream
        self._agree = agree
        self._mover = FeatureMover(cache.device, ring, feature_dtype)
        ranks = None if agree is None else RankStates.of(agree)
        self._runner = EncoderRunner(encode, cache, self._mover, max_rows, move_features, ranks, self.tenant)
        self._prefetched = PrefetchedFeatures()
        self._kept = KeptRows(cache, keep_bytes)
        self._keys = KeyThreads()
        self._steps: Steps = StepRunner(
            cache,
            self._runner,
            self._mover,
            self._prefetched,
            self._kept,
            self._keys,
            namespace=self.namespace,
            agree=agree,
            shadow=shadow,
            stream=stream,
            max_rows=max_rows,
            tenant=self.tenant,
        )
        self._job = PrefetchJob(
            cache, self._runner, self._prefetched, self._kept, self.namespace, self._keys, self.tenant
        )
        self._worker = PrefetchWorker()
        self._is_closed = False
        # The garbage collector may run this finalizer in a thread that holds locks, so it must not wait.
        # It does not keep the threads: if an interrupt stops it, they end when they are freed.
        parts = weakref.ref(self._worker), weakref.ref(self._keys)
        weakref.finalize(self, _stop_threads, parts).atexit = False

    def embed(
        self,
        chunks: Sequence[Chunk],
        input_ids: Tensor,
        weight: Tensor,
        *,
        out: Tensor | None = None,
        deepstack: Tensor | Sequence[Tensor] | None = None,
        deepstack_rows: Tensor | None = None,
        scale: float | None = None,
        text_scale: float | None = None,
    ) -> EmbedResult:
        """Build the `inputs_embeds` of one step, and encode its items that are not in the cache.

        Parameters
        ----------
        chunks
            The chunks of the batch, one or more per request. Chunks must not overlap in the batch. Tokens
            outside of all chunks are text tokens.
        input_ids, weight, out, deepstack, deepstack_rows, scale, text_scale
            As in `embed_tokens`. `weight` must be on the cache's device. The cache's `row_width` must be
            ``H``, the width of `weight`, or ``H * (1 + L)`` with ``L`` deepstack levels. The deepstack rows
            of tokens whose item has rows of width ``H`` are zero.

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
            If the pipeline or the cache is closed; if the call is made inside of another call, and would wait
            for it; or as `embed_tokens`.

        Notes
        -----
        If `embed` raises, the cache contains no wrong rows, and the content of `out` is undefined. After
        `embed` has returned, features in host memory may be overwritten. For new content make a new `Item`,
        because an `Item` stores its key. For the order of the work, threads and streams, see the class.
        """
        if self._is_closed:
            raise RuntimeError("the pipeline was closed")
        device = self.cache.device
        if getattr(weight, "device", device) != device or is_traced(weight):
            refuse_tensor("weight", weight, device)
        call = EmbedCall(input_ids, weight, out, deepstack, scale, text_scale, deepstack_rows=deepstack_rows)
        return self._steps.run(call, chunks)

    def place(
        self,
        chunks: Sequence[Chunk],
        inputs_embeds: Tensor,
        *,
        deepstack: Tensor | Sequence[Tensor] | None = None,
        deepstack_rows: Tensor | None = None,
        scale: float | None = None,
    ) -> EmbedResult:
        """Write the rows of a step's items into `inputs_embeds`, which contains the rows of its text tokens.

        For engines whose embedding table is sharded, scaled or a module of its own. Items are looked up,
        encoded, stored and reported as in `embed`.

        Parameters
        ----------
        chunks
            As in `embed`.
        inputs_embeds, deepstack, deepstack_rows, scale
            As in `scatter_embeddings`, in place. `inputs_embeds` must be on the cache's device. The cache's
            `row_width` must be ``H``, or ``H * (1 + L)`` with ``L`` deepstack levels. The deepstack rows of
            tokens whose item has rows of width ``H`` are zeroed.

        Returns
        -------
        EmbedResult
            `inputs_embeds` itself, and one `ItemError` per occurrence of a failed item. The rows of failed
            items are zero. All tokens outside of the items' spans keep their rows, in `deepstack`, too.

        Raises
        ------
        IndexError, ValueError, TypeError, RuntimeError
            As `embed`, with `inputs_embeds` in place of `weight`.

        Notes
        -----
        If `place` raises before the placement, `inputs_embeds` is unchanged. Gradients are not recorded. For
        threads and streams, see the class.

        Examples
        --------
        >>> import torch
        >>> from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline
        >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=4096)
        >>> chunk = Chunk([Item(torch.ones(2, 2), Span(1, 2))], start=0, length=4)
        >>> inputs_embeds = torch.full((4, 2), 0.5)  # from the engine's embedding layer
        >>> with VisionPipeline(lambda features, items: features, cache) as pipeline:
        ...     result = pipeline.place([chunk], inputs_embeds)
        >>> inputs_embeds.tolist(), result.errors
        ([[0.5, 0.5], [1.0, 1.0], [1.0, 1.0], [0.5, 0.5]], [])
        """
        if self._is_closed:
            raise RuntimeError("the pipeline was closed")
        device = self.cache.device
        if getattr(inputs_embeds, "device", device) != device or is_traced(inputs_embeds):
            refuse_tensor("inputs_embeds", inputs_embeds, device)
        call = ScatterCall(inputs_embeds, deepstack, scale, deepstack_rows=deepstack_rows)
        return self._steps.run(call, chunks)

    @traced("key")
    def key(self, item: Item) -> bytes:
        """Return the key under which the pipeline looks an item up in the cache. The item stores it.

        This is `Item.key` with the namespace folded in (unchanged if `Item.complete_key` is true or the
        namespace is empty), or, without a given key, the key of its content: then the feature is hashed now,
        and a callable feature is called.

        Raises
        ------
        TypeError
            If `item` is not an `Item`, or `content_key` cannot hash the feature or the `encoder_kwargs`.
        Exception
            If the feature is a function: the exception that the function raises.
        """
        check_item(item)
        key = known_key(item, self.namespace, self.tenant)
        if key is None:
            feature = item.feature() if callable(item.feature) else item.feature
            space = namespace_of(item, self.namespace, self.tenant)
            key = content_key(feature, namespace=space, extra=item.encoder_kwargs)
            item.digest = self.namespace, key
        return key

    def prefetch(self, chunks: Sequence[Chunk], *, encode: bool = True) -> Prefetch:
        """Start to hash, fetch, copy and encode the items of later chunks on a worker thread; do not wait.

        Call it after `embed`: the worker then hashes and copies features while the language model runs, and a
        later `embed` finds the rows in the cache. Encodes share the GPU with the language model; on an H100,
        encodes during a prefill saved no time (docs/decisions.md).

        Parameters
        ----------
        chunks
            The later chunks. Their `token_offset` is not used.
        encode
            False: the worker hashes the features, fetches rows, and copies the features of the other items to
            the device; `embed` encodes them. It does not copy features of items with ``move_feature=False``.
            All prefetches together keep about 256 MiB of features: the oldest ones of earlier prefetches are
            freed for new ones, and `embed` then loads them again. With `agree` the worker never encodes.

        Returns
        -------
        Prefetch
            A handle. If the request is cancelled, pass the handle to `cancel`. If the pipeline has 16
            unfinished prefetches, or the process cannot start the worker, the prefetch is refused:
            `Prefetch.is_refused` is true, and the worker does nothing.

        Raises
        ------
        TypeError
            If `chunks` is not a list of `Chunk`, or `encode` is not a bool.
        RuntimeError
            If the pipeline is closed.

        Notes
        -----
        If the cache has tiers below its host tier, the worker asks them for the items that are not in the
        cache, and waits at most `fetch_timeout_s` of the cache. It encodes late items, whose rows still
        enter the cache. `embed` and `place` never ask the tiers.

        The worker skips items that are in the cache, and items that another caller encodes. It uses the
        caller's current device and grad, inference and autocast modes. It queues its work on its own stream,
        which waits for the caller's current stream. Features must not change until the prefetch is done. If
        the worker fails, a later `embed` repeats the work and reports its errors.

        Features are loaded and hashed on the threads that also hash those of `embed`, in the order of the
        calls: an `embed` that has to hash waits for slow loads of an earlier prefetch. Items with a key do
        not wait.

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
        check_bool("encode", encode)
        ready = record_event(self.cache.device)
        work = partial(
            self._job.work, tuple(chunks), encode and self._agree is None, TorchModes.capture(), ready
        )
        return self._worker.submit(work)

    def fetch(self, chunks: Sequence[Chunk]) -> None:
        """Ask the tiers below the host tier for the items of chunks, and wait at most `fetch_timeout_s`.

        For callers without an earlier moment for `prefetch`, before `embed`. Items that are in the cache are
        not asked for. Features without a key are loaded and hashed on threads, and the host waits for them.
        Late rows enter the cache when they arrive. Without such tiers, it returns at once.

        Parameters
        ----------
        chunks
            As in `prefetch`.

        Raises
        ------
        TypeError
            If `chunks` is not a list of `Chunk`.
        RuntimeError
            If the pipeline or the cache is closed.

        Notes
        -----
        An item whose feature cannot be loaded or hashed is left out: `embed` reports its error. No work is
        queued on a stream, except the copy of a feature on a GPU that is hashed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline
        >>> from vitcache.tiers import MemoryTier
        >>> options = {"dtype": torch.float32, "device": "cpu", "device_bytes": 4096, "host_bytes": 4096}
        >>> chunk = Chunk([Item(torch.ones(2, 2), Span(1, 2))], start=0, length=4)
        >>> with EmbeddingCache(2, tiers=[MemoryTier("1MiB")], **options) as cache:
        ...     with VisionPipeline(lambda features, items: features, cache) as pipeline:
        ...         pipeline.fetch([chunk])
        ...     [tier.misses for tier in cache.stats().tiers]
        [1]
        """
        check_chunks(chunks)
        if self._is_closed:
            raise RuntimeError("the pipeline was closed")
        len(self.cache)  # raises RuntimeError if it was closed
        if self.cache.has_lower_tiers:
            self._job.fetch(tuple(chunks))

    def cancel(self, handle: Prefetch) -> None:
        """Stop a prefetch, and free the features that it moved to the device. Encoded rows stay cached.

        Raises TypeError if `handle` is not a `Prefetch`.
        """
        check_handle(handle)
        handle.cancel()
        self._prefetched.drop(handle)

    def close(self) -> None:
        """Cancel every prefetch, wait for the running one, and close the ring that the pipeline made.

        Afterwards `embed`, `place` and `prefetch` raise RuntimeError. The cache and the caller's ring stay
        open. A second call does nothing.
        """
        self._is_closed = True
        self._worker.close()
        self._keys.close()
        self._prefetched.clear()
        self._kept.clear()
        self._mover.close()

    def __enter__(self) -> VisionPipeline:
        if self._is_closed:
            raise RuntimeError("the pipeline was closed")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __reduce_ex__ = refuse_copies("it owns threads; make another pipeline over the same cache")

    @described
    def __repr__(self) -> str:
        if self._is_closed:
            return "closed"
        rows = describe_count(self.max_rows_per_encode, "row")
        return f"{self.cache.device}, encodes at most {rows} at once, {self.cache!r}"


def _stop_threads(parts: Sequence[weakref.ref[PrefetchWorker] | weakref.ref[KeyThreads]]) -> None:
    for reference in parts:
        part = reference()
        if part is not None:
            part.stop()
