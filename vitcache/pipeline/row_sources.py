"""Where the placing launch reads each item's rows, and which of them it also stores in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease, release_all
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.step_item import StepItem
from vitcache.placement.spans import Span
from vitcache.rows import DTYPE_NAMES, can_be_stored


class RowSources(NamedTuple):
    """What `embed_tokens` takes, item by item; and rows that the cache had no room for, with their claims."""

    embeddings: list[Tensor | Lease | Reservation]
    spans: list[list[Span]]
    store: list[Reservation | None]
    refused: list[tuple[Claim, Tensor]]

    def commit(self, cache: EmbeddingCache, leases: list[Lease]) -> None:
        """Enter in the cache what was placed and stored, or was stored before, and release the leases.

        A step that needs the whole device tier leaves no room there for its last rows. Now that it is over
        they get it, where others can move on to the host tier.
        """
        for source in (*self.embeddings, *self.store):
            if isinstance(source, Reservation):
                source.commit()
        release_all(leases)
        if cache.has_host_tier:
            for claim, rows in self.refused:
                claim.put(rows)


def collect(
    step_items: Sequence[StepItem], cache: EmbeddingCache, mover: FeatureMover, held: ExitStack
) -> RowSources:
    """Return the sources of all step items; room in the cache that is not committed is given back when `held`
    ends.

    Rows that the cache does not take are rounded as if it had. A step item without rows gets zeros.
    """
    sources = RowSources([], [], [], [])
    for step_item in step_items:
        if step_item.item.rows is not None:
            _take_precomputed(step_item, step_item.item.rows, cache, mover)
        rows, store = step_item.rows, None
        if isinstance(rows, Tensor) and rows.device.type == "cuda":  # it may come from the encoder's stream
            rows.record_stream(torch.cuda.current_stream(rows.device))
        if rows is None:
            rows = torch.zeros(1, cache.row_width, dtype=cache.dtype, device=cache.device)
            reached = max(
                span.source_start + span.length
                for occurrence in step_item.occurrences
                for span in occurrence.spans
            )
            rows = rows.expand(reached, -1)  # one row stands for all
        elif isinstance(rows, Reservation):
            held.enter_context(rows)
        elif isinstance(rows, Lease):
            # What is hit again in host memory earns a place on the device, written as it is placed.
            store = cache.promote(rows) if rows.tier == "host" and rows.hits > 1 else None
            if store is not None:
                held.enter_context(store)
        elif step_item.is_fresh and isinstance(rows, Tensor) and step_item.claim is not None:
            store = step_item.claim.reserve(step_item.num_rows)
            if store is None:
                rows = rows.to(cache.dtype)
            else:
                held.enter_context(store)
        if (
            step_item.claim is not None
            and isinstance(rows, Tensor)
            and store is None
            and step_item.error is None
        ):
            sources.refused.append((step_item.claim, rows))
        sources.embeddings.append(rows)
        sources.spans.append([span for occurrence in step_item.occurrences for span in occurrence.spans])
        sources.store.append(store)
    return sources


def _take_precomputed(step_item: StepItem, rows: Tensor, cache: EmbeddingCache, mover: FeatureMover) -> None:
    """Check rows that came with an item, and have them where they can be placed from."""
    if not can_be_stored(rows):
        step_item.fail(
            TypeError(
                f"rows are a {rows.layout} tensor of {rows.dtype} on {rows.device}, they must be a dense one "
                f"of {DTYPE_NAMES} on the CPU or CUDA"
            )
        )
    elif rows.shape[1] != cache.row_width:
        step_item.fail(
            ValueError(f"rows have width {rows.shape[1]}, those of the cache have {cache.row_width}")
        )
    elif rows.device == cache.device:
        step_item.rows = rows.detach()
    else:
        # Pinned ones, too: the device would read them after the step has returned.
        try:
            moved = mover.start(rows, is_cast=False)
            step_item.take_moved(moved)
            step_item.rows = moved.ready()
        except Exception as error:
            step_item.fail(error)
