"""Encoding what is missing: micro-batches, the next one's features on their way, failures kept apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any, cast

import torch
from torch import Tensor

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.streams import record_event
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.items import Item
from vitcache.pipeline.step_item import StepItem
from vitcache.rows import DTYPE_NAMES, can_be_stored

Encode = Callable[[list[Tensor], list[Item]], "Sequence[Tensor] | Tensor"]


class EncoderRunner:
    """Runs the caller's encoder over step items, one call at a time.

    Parameters
    ----------
    encode
        See `VisionPipeline`.
    max_rows
        Rows of a micro-batch; an item with more has one to itself.

    Notes
    -----
    The encoder is called on the thread's current stream. A thread is in `exclusive` from its call of `run`
    until it has placed or stored the rows, as the next call of the encoder may write over them.
    """

    def __init__(self, encode: Encode, cache: EmbeddingCache, mover: FeatureMover, max_rows: int) -> None:
        self._encode = encode
        self._cache = cache
        self._mover = mover
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._last: Any = None  # an event behind the last exclusive use

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the encoder to oneself: on the host, and on the device as the current stream sees it."""
        device = self._cache.device
        with self._lock:
            if self._last is not None:
                torch.cuda.current_stream(device).wait_event(self._last)
            try:
                yield
            finally:
                self._last = record_event(device)

    def batches(self, step_items: Sequence[StepItem]) -> list[list[StepItem]]:
        """Cut step items into micro-batches, in order, each as full as it may be."""
        batches: list[list[StepItem]] = []
        room = 0
        for step_item in step_items:
            if not batches or step_item.num_rows > room:
                batches.append([])
                room = self._max_rows
            batches[-1].append(step_item)
            room -= step_item.num_rows
        return batches

    def run(self, step_items: Sequence[StepItem]) -> None:
        """Encode all step items, in the caller's `exclusive`; each has `rows` or `error` when this returns.

        The rows of the last micro-batch are as the encoder gave them. It may use its memory again in the next
        call, so those of earlier ones are written to pages, or copied where the cache has no room.
        """
        batches = self.batches(step_items)
        fresh: list[StepItem] = []
        self.start(batches[0] if batches else [])
        self._cache.expect([step_item.num_rows for step_item in step_items if step_item.claim is not None])
        for number, batch in enumerate(batches):
            # The copies of the next features run while these are encoded.
            self.start(batches[number + 1] if number + 1 < len(batches) else [])
            self.store_fresh(fresh)
            fresh = self._run_batch([step_item for step_item in batch if step_item.error is None])
            for step_item in batch:
                step_item.feature = step_item.moved = None

    def encode_once_more(self, step_item: StepItem) -> Tensor:
        """Encode an item whose rows are there, in the caller's `exclusive`; return rows in the encoder's
        memory.

        Raises
        ------
        Exception
            What kept it from being encoded.
        """
        alone = StepItem(step_item.occurrences[0])
        alone.others = step_item.others
        alone.take_moved(step_item.moved)
        self.start([alone])
        step_item.ticket = alone.ticket
        if alone.error is None:
            [rows] = self._call([alone])
            self._take(alone, rows)
        if alone.error is not None:
            raise alone.error
        return cast("Tensor", alone.rows)

    def start(self, step_items: Sequence[StepItem]) -> None:
        """Begin to move the features of step items to the device, and load those that are to be loaded."""
        for step_item in step_items:
            if step_item.moved is None and step_item.error is None:
                try:
                    step_item.take_moved(self._mover.start(step_item.load()))
                except Exception as error:
                    step_item.fail(error)

    def _run_batch(self, step_items: list[StepItem]) -> list[StepItem]:
        """Encode a micro-batch; return the step items whose rows are in the encoder's memory."""
        outputs: list[Any] | None = None
        try:
            outputs = self._call(step_items) if step_items else []
        except Exception as error:
            # Its frames hold what the encoder had allocated, which the next one may need.
            clear_frames(error.__traceback__)
            if len(step_items) == 1:
                step_items[0].fail(error)
                return []
        if outputs is None:
            return self._run_alone(step_items)
        for step_item, rows in zip(step_items, outputs, strict=True):
            self._take(step_item, rows)
        return [step_item for step_item in step_items if step_item.error is None]

    def _run_alone(self, step_items: list[StepItem]) -> list[StepItem]:
        """Encode the items of a micro-batch that failed one by one, so that only the guilty ones do."""
        fresh: list[StepItem] = []
        for step_item in step_items:
            self.store_fresh(fresh)
            fresh = self._run_batch([step_item])
        return fresh

    def _call(self, step_items: list[StepItem]) -> list[Any]:
        features = [step_item.moved.ready() for step_item in step_items if step_item.moved is not None]
        items = [step_item.item for step_item in step_items]
        outputs: Any = self._encode(features, items)
        counts = [item.num_rows for item in items]
        if isinstance(outputs, Tensor):
            if len(step_items) == 1:
                return [outputs.detach()]
            if outputs.dim() != 2 or len(outputs) != sum(counts):
                shape, total = tuple(outputs.shape), sum(counts)
                raise ValueError(f"encode returned shape {shape} for {len(items)} items of {total} rows")
            return list(outputs.detach().split(counts))
        if not isinstance(outputs, list | tuple):
            raise TypeError(f"encode must return tensors, it returned {type(outputs).__name__}")
        if len(outputs) != len(items):
            raise ValueError(f"encode returned {len(outputs)} tensors for {len(items)} items")
        return list(outputs)

    def _take(self, step_item: StepItem, rows: Any) -> None:
        """Let a step item have what the encoder gave for it, if that can be rows of it."""
        width, device = self._cache.row_width, self._cache.device
        if not isinstance(rows, Tensor):
            step_item.fail(TypeError(f"encode must return tensors, one is {type(rows).__name__}"))
        elif rows.device != device:
            step_item.fail(ValueError(f"encode returned rows on {rows.device}, the cache is on {device}"))
        elif not can_be_stored(rows):
            what = f"{rows.dtype} in a {rows.layout} tensor"
            step_item.fail(TypeError(f"encode returned {what}, rows are in a dense one of {DTYPE_NAMES}"))
        elif rows.dim() != 2 or rows.shape[1] != width:
            step_item.fail(
                ValueError(f"encode returned shape {tuple(rows.shape)}, it must be (rows, {width})")
            )
        elif len(rows) != step_item.num_rows:
            message = f"encode returned {len(rows)} rows, the item has {step_item.num_rows}"
            step_item.fail(ValueError(message), len(rows))
        else:
            step_item.rows, step_item.is_fresh = rows.detach(), True

    def store_fresh(self, step_items: Sequence[StepItem]) -> None:
        """Take rows out of the encoder's memory."""
        for step_item in step_items:
            if step_item.is_fresh and isinstance(step_item.rows, Tensor) and step_item.claim is not None:
                reservation = step_item.claim.reserve(step_item.num_rows)
                if reservation is None:
                    step_item.rows = step_item.rows.to(self._cache.dtype, copy=True)
                else:
                    reservation.write_checked(step_item.rows)
                    step_item.rows = reservation
                step_item.is_fresh = False
