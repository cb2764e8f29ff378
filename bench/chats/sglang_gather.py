"""One step of one request, from keys to `inputs_embeds`, as in SGLang; re-expressed, with sources.

`Sglang` does the work that SGLang does inside its model's forward pass: the look-up, the encode of missing
items, and the merge. The work of its scheduler and the copies of features are left out.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from vitcache.bench.chats.gathers import ROWS, Gather, Request


@dataclass
class SglangItem:
    """One item of a request; its tokens have the ids `pad_values`, repeated. Offsets include their ends."""

    hash: int
    modality: str
    offsets: list[tuple[int, int]]
    pad_values: tuple[int, ...]
    precomputed: Tensor | None = None


class StaticCache:
    """SGLang 0.5.23, mem_cache/multimodal_cache.py, `MultiModalStaticCache`: LRU by bytes.

    The tensor of an entry is cloned if it is a part of a larger allocation.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[int, Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, key: int) -> Tensor | None:
        """Return an entry, which becomes the most recently used one."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def set(self, key: int, rows: Tensor) -> bool:
        """Add an entry unless its key is present; return whether the cache has it."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return True
        allocated = rows.untyped_storage().nbytes()
        size = min(allocated, rows.element_size() * rows.numel())
        if size > self._max_bytes:
            return False
        while self._bytes + size > self._max_bytes:
            _, evicted = self._entries.popitem(last=False)
            self._bytes -= evicted.untyped_storage().nbytes()
        if allocated > size:
            rows = rows.clone()
        self._entries[key] = rows
        self._bytes += rows.untyped_storage().nbytes()
        return True

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
        self._bytes = 0


class Sglang(Gather):
    """SGLang 0.5.23: srt/managers/mm_utils.py:447 (`embed_mm_inputs`), and its gather in mm_schedule.py:541.

    The step differs from SGLang's in one point: it clamps a copy of the ids, and SGLang clamps them in place.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._cache = StaticCache(100 << 20)
        self._items = [
            SglangItem(
                int.from_bytes(key[:8], "big"),
                "image",
                [(start, start + ROWS - 1)],
                tuple((1 << 62) + secrets.randbits(61) for _ in range(4)),
            )
            for key, start in zip(request.keys, request.starts, strict=True)
        ]
        self._ids = request.ids.clone()
        for item in self._items:
            [(start, end)] = item.offsets
            length = end + 1 - start
            self._ids[start : end + 1] = torch.tensor((item.pad_values * length)[:length])

    def forget(self) -> None:
        """See `Gather`."""
        self._cache.clear()

    def step(self) -> Tensor:
        """See `Gather`."""
        merges = []
        with torch.profiler.record_function("embed_mm_inputs"):
            for modality in ("image", "video", "audio"):
                items = [item for item in self._items if item.modality == modality]
                if not items:
                    continue
                placeholders = torch.as_tensor(sorted(value for item in items for value in item.pad_values))
                offsets = [offset for item in items for offset in item.offsets]
                expected = sum(
                    max(min(end + 1, self.request.num_tokens) - max(start, 0), 0) for start, end in offsets
                )
                rows = self.gather(items, offsets, 0, self.request.num_tokens)
                nearest = torch.searchsorted(placeholders, self._ids).clamp_(max=len(placeholders) - 1)
                mask = (placeholders[nearest] == self._ids).unsqueeze(-1)
                if len(rows) != expected:
                    raise RuntimeError(f"expected {expected} rows, got {len(rows)}")
                merges.append((mask, rows))
            out = embedding(self._ids.clamp(0, len(self.request.weight) - 1), self.request.weight)
            for mask, rows in merges:
                scatter(out, mask, rows)
        return out

    def gather(self, items: list[SglangItem], offsets: list[tuple[int, int]], begin: int, end: int) -> Tensor:
        """Return the rows of the chunk's tokens in one tensor; encode missing items in one call."""
        if not any(item.precomputed is None for item in items):
            raise RuntimeError("expected items without precomputed rows")
        if not any(last >= begin and first < end for first, last in offsets):
            raise RuntimeError("expected a chunk with an item")
        if not all(len(item.offsets) == 1 for item in items):
            raise RuntimeError("expected items with one offset each")
        overlapping = []
        for position, item in enumerate(items):
            first, last = item.offsets[0]
            if last >= begin and first < end:
                overlapping.append((position, item, last - first + 1))
        found: dict[tuple[int, int], Tensor] = {}
        missing: dict[tuple[int, int], int] = {}
        for position, item, length in overlapping:
            key = (item.hash, length)
            if key in found:
                continue
            cached = self._cache.get(item.hash)
            if cached is not None and num_rows(cached) == length:
                found[key] = cached
            elif key not in missing:
                missing[key] = position
        if missing:
            for key, rows in zip(missing, self.request.encode(list(missing.values())), strict=True):
                rows = rows.reshape(-1, rows.shape[-1])
                if self._cache.set(key[0], rows):
                    cached = self._cache.get(key[0])
                    rows = cached if cached is not None and num_rows(cached) == key[1] else rows
                found[key] = rows
        slices = []
        for position, item, length in overlapping:
            first, last = item.offsets[0]
            rows = found[item.hash, length]
            slices.append((position, rows[max(first, begin) - first : min(last + 1, end) - first]))
        slices.sort(key=lambda pair: pair[0])
        return slices[0][1] if len(slices) == 1 else torch.cat([rows for _, rows in slices])


def num_rows(rows: Tensor) -> int:
    """Return the number of rows of an encoder output with two or more dimensions."""
    return rows.reshape(-1, rows.shape[-1]).shape[0]


def scatter(out: Tensor, mask: Tensor, rows: Tensor) -> None:
    """Write rows to the tokens of the mask: SGLang 0.5.23, srt/managers/mm_utils.py:429.

    Row indices are computed by a cumulative sum of the mask; text tokens write to one extra element.
    """
    flat = mask.view(-1)
    ranks = (torch.cumsum(flat, 0) - 1).masked_fill(~flat, len(rows))
    index = torch.full((len(rows) + 1,), len(out), dtype=torch.long)
    index.scatter_(0, ranks, torch.arange(len(flat)))
    out.index_copy_(0, index[: len(rows)], rows)
