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
from vitcache.pipeline.feature_mover import FeatureMover, record_event
from vitcache.pipeline.items import Item
from vitcache.pipeline.step_item import Need
from vitcache.rows import DTYPE_NAMES, DTYPES

Encode = Callable[[list[Tensor], list[Item]], "Sequence[Tensor] | Tensor"]


class Encoding:
    """Runs the caller's encoder over needs, one call at a time.

    Parameters
    ----------
    encode
        See `VisionPipeline`.
    max_rows
        Rows of a micro-batch; an item with more has one to itself.

    Notes
    -----
    The encoder is called on the thread's current stream. A thread holds `turn` from its call of `run` until
    it has placed or kept the rows, as the next call of the encoder may write over them.
    """

    def __init__(self, encode: Encode, cache: EmbeddingCache, mover: FeatureMover, max_rows: int) -> None:
        self._encode = encode
        self._cache = cache
        self._mover = mover
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._last: Any = None  # an event behind the last turn

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the encoder to oneself: on the host, and on the device as the current stream sees it."""
        device = self._cache.device
        with self._lock:
            if self._last is not None:
                torch.cuda.current_stream(device).wait_event(self._last)
            try:
                yield
            finally:
                self._last = record_event(device)

    def batches(self, needs: Sequence[Need]) -> list[list[Need]]:
        """Cut needs into micro-batches, in order, each as full as it may be."""
        batches: list[list[Need]] = []
        room = 0
        for need in needs:
            if not batches or need.item.num_rows > room:
                batches.append([])
                room = self._max_rows
            batches[-1].append(need)
            room -= need.item.num_rows
        return batches

    def run(self, needs: Sequence[Need], epoch: int) -> None:
        """Encode all needs, in the caller's `turn`; each has `rows` or `error` when this returns.

        The rows of the last micro-batch are as the encoder gave them. It may use its memory again in the next
        call, so those of earlier ones are written to pages, or copied where the cache has no room.

        Parameters
        ----------
        epoch
            Of the cache, before anything that the rows depend on was read.
        """
        batches = self.batches(needs)
        fresh: list[Need] = []
        self.start(batches[0] if batches else [])
        self._cache.expect([need.item.num_rows for need in needs if need.key is not None])
        for number, batch in enumerate(batches):
            # The copies of the next features run while these are encoded.
            self.start(batches[number + 1] if number + 1 < len(batches) else [])
            self.keep(fresh, epoch)
            fresh = self._run_batch([need for need in batch if need.error is None], epoch)
            for need in batch:
                need.feature = need.moved = None

    def again(self, need: Need) -> Tensor:
        """Encode an item whose rows are there, in the caller's `turn`; return rows in the encoder's memory.

        Raises
        ------
        Exception
            What kept it from being encoded.
        """
        alone = Need(need.uses[0])
        alone.others = need.others
        alone.take_moved(need.moved)
        self.start([alone])
        need.ticket = alone.ticket
        if alone.error is None:
            [rows] = self._call([alone])
            self._take(alone, rows)
        if alone.error is not None:
            raise alone.error
        return cast("Tensor", alone.rows)

    def start(self, needs: Sequence[Need]) -> None:
        """Begin to move the features of needs to the device, and load those that are to be loaded."""
        for need in needs:
            if need.moved is None and need.error is None:
                try:
                    need.take_moved(self._mover.start(need.load()))
                except Exception as error:
                    need.fail(error)

    def _run_batch(self, needs: list[Need], epoch: int) -> list[Need]:
        """Encode a micro-batch; return the needs whose rows are in the encoder's memory."""
        outputs: list[Any] | None = None
        try:
            outputs = self._call(needs) if needs else []
        except Exception as error:
            # Its frames hold what the encoder had allocated, which the next one may need.
            clear_frames(error.__traceback__)
            if len(needs) == 1:
                needs[0].fail(error)
                return []
        if outputs is None:
            return self._run_alone(needs, epoch)
        for need, rows in zip(needs, outputs, strict=True):
            self._take(need, rows)
        return [need for need in needs if need.error is None]

    def _run_alone(self, needs: list[Need], epoch: int) -> list[Need]:
        """Encode the items of a micro-batch that failed one by one, so that only the guilty ones do."""
        fresh: list[Need] = []
        for need in needs:
            self.keep(fresh, epoch)
            fresh = self._run_batch([need], epoch)
        return fresh

    def _call(self, needs: list[Need]) -> list[Any]:
        features = [need.moved.ready() for need in needs if need.moved is not None]
        items = [need.item for need in needs]
        outputs: Any = self._encode(features, items)
        counts = [item.num_rows for item in items]
        if isinstance(outputs, Tensor):
            if len(needs) == 1:
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

    def _take(self, need: Need, rows: Any) -> None:
        """Let a need have what the encoder gave for it, if that can be rows of it."""
        width, device = self._cache.row_width, self._cache.device
        if not isinstance(rows, Tensor):
            need.fail(TypeError(f"encode must return tensors, one is {type(rows).__name__}"))
        elif rows.dtype not in DTYPES:
            need.fail(TypeError(f"encode returned {rows.dtype}, rows are one of {DTYPE_NAMES}"))
        elif rows.device != device:
            need.fail(ValueError(f"encode returned rows on {rows.device}, the cache is on {device}"))
        elif rows.dim() != 2 or rows.shape[1] != width:
            need.fail(ValueError(f"encode returned shape {tuple(rows.shape)}, it must be (rows, {width})"))
        elif len(rows) != need.item.num_rows:
            message = f"encode returned {len(rows)} rows, the item has {need.item.num_rows}"
            need.fail(ValueError(message), len(rows))
        else:
            need.rows, need.is_fresh = rows.detach(), True

    def keep(self, needs: Sequence[Need], epoch: int) -> None:
        """Take rows out of the encoder's memory."""
        for need in needs:
            if need.is_fresh and isinstance(need.rows, Tensor) and need.key is not None:
                reservation = self._cache.reserve(need.key, need.item.num_rows, epoch=epoch)
                if reservation is None:
                    need.rows = need.rows.to(self._cache.dtype, copy=True)
                else:
                    reservation.write(need.rows)
                    need.rows = reservation
                need.is_fresh = False
