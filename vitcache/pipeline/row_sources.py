"""The sources of a step's placement: each item's rows, and the pages that new rows are stored in."""

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
    """Arguments of `embed_tokens`, one per item; and the rows that the cache rejected, with their claims."""

    embeddings: list[Tensor | Lease | Reservation]
    spans: list[list[Span]]
    store: list[Reservation | None]
    rejected: list[tuple[Claim, Tensor]]

    def commit(self, cache: EmbeddingCache, leases: list[Lease]) -> None:
        """Insert the rows that were written to pages, release the leases, and insert rejected rows.

        If a step pins the whole device tier, the cache rejects the step's last rows. Once the leases are
        released, a cache with a host tier can demote the leased entries and admit the last rows.
        """
        for source in (*self.embeddings, *self.store):
            if isinstance(source, Reservation):
                source.commit()
        release_all(leases)
        if cache.has_host_tier:
            for claim, rows in self.rejected:
                claim.put(rows)


def collect_sources(
    step_items: Sequence[StepItem], cache: EmbeddingCache, mover: FeatureMover, cleanup: ExitStack
) -> RowSources:
    """Return the sources of all step items, and reserve pages for rows that are still to be stored.

    Rows that the cache rejects are also rounded to its dtype. An item without rows gets zeros.

    Parameters
    ----------
    cleanup
        Cancels the reservations that are not committed when it closes.
    """
    sources = RowSources([], [], [], [])
    for step_item in step_items:
        if step_item.item.rows is not None:
            _take_precomputed(step_item, step_item.item.rows, cache, mover)
        rows, store = step_item.rows, None
        if isinstance(rows, Tensor) and rows.device.type == "cuda":  # the encoder's stream may own its memory
            rows.record_stream(torch.cuda.current_stream(rows.device))
        if rows is None:
            zero = torch.zeros(1, cache.row_width, dtype=cache.dtype, device=cache.device)
            num_rows = max(
                span.source_start + span.length
                for occurrence in step_item.occurrences
                for span in occurrence.spans
            )
            rows = zero.expand(num_rows, -1)
        elif isinstance(rows, Reservation):
            cleanup.enter_context(rows)
        elif isinstance(rows, Lease):
            # The second hit in the host tier promotes the entry: the placement writes its rows to `store`.
            store = cache.promote(rows) if rows.tier == "host" and rows.hits > 1 else None
            if store is not None:
                cleanup.enter_context(store)
        elif step_item.is_fresh and isinstance(rows, Tensor) and step_item.claim is not None:
            store = step_item.claim.reserve(step_item.num_rows)
            if store is None:
                rows = rows.to(cache.dtype)
            else:
                cleanup.enter_context(store)
        if (
            step_item.claim is not None
            and isinstance(rows, Tensor)
            and store is None
            and step_item.error is None
        ):
            sources.rejected.append((step_item.claim, rows))
        sources.embeddings.append(rows)
        sources.spans.append([span for occurrence in step_item.occurrences for span in occurrence.spans])
        sources.store.append(store)
    return sources


def _take_precomputed(step_item: StepItem, rows: Tensor, cache: EmbeddingCache, mover: FeatureMover) -> None:
    """Check an item's precomputed rows, and move them to the cache's device."""
    if not can_be_stored(rows):
        step_item.fail(
            TypeError(
                f"rows must be a dense tensor of {DTYPE_NAMES} on the CPU or CUDA, got a {rows.layout} "
                f"tensor of {rows.dtype} on {rows.device}"
            )
        )
    elif rows.shape[1] != cache.row_width:
        step_item.fail(
            ValueError(
                f"rows must have the cache's row_width, which is {cache.row_width}, got {rows.shape[1]}"
            )
        )
    elif rows.device == cache.device:
        step_item.rows = rows.detach()
    else:
        # Pinned rows are copied, too: a launch might read the originals after `embed` has returned.
        try:
            moved = mover.start(rows, is_cast=False)
            step_item.take_moved(moved)
            step_item.rows = moved.ready()
        except Exception as error:
            step_item.fail(error)
