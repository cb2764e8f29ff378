"""`StepPlacement`: writes the rows of one step of vLLM's worker to `inputs_embeds` in one launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from vitcache._native import StepPlan, read_requests
from vitcache.adapters.vllm.planned_rows import PlannedRows
from vitcache.adapters.vllm.store import Store
from vitcache.adapters.vllm.text_rows import TextRows
from vitcache.pipeline.items import Chunk, Item, Items
from vitcache.placement.placement import Placement
from vitcache.placement.spans import spans_from_placeholder


class StepBatch(Protocol):
    """The fields of vLLM's `InputBatch` that a placement reads: one element per request."""

    req_ids: list[str]
    num_tokens: int
    num_scheduled_tokens: np.ndarray
    num_computed_tokens_np: np.ndarray
    prefill_len_np: np.ndarray
    query_start_loc_np: np.ndarray


class StepPlacement:
    """Plans the rows of a step natively, and writes them with one launch.

    Parameters
    ----------
    text
        How text rows are looked up.
    features
        vLLM's items by request: `EncoderCache.mm_features`. The list of a request does not change while
        `forget` is not called.

    Notes
    -----
    Only the worker's thread may call. The launch is queued on the current stream; the host does not wait.
    No Python object is made for an item whose rows vLLM's encoder cache shows: a step makes one `Chunk` per
    request in prefill.
    """

    def __init__(self, text: TextRows, features: Mapping[str, Sequence[Any]]) -> None:
        self._text = text
        self._features = features
        self._items: dict[str, Items] = {}

    def forget(self, request: str) -> None:
        """Forget the items of a request that has ended, or whose items have changed."""
        self._items.pop(request, None)

    def place(
        self, batch: StepBatch, ids: Tensor, out: Tensor, levels: list[Tensor] | None, store: Store
    ) -> int:
        """Write text rows and rows of items to `out`, and insert the pending entries that are placed.

        Parameters
        ----------
        batch
            The requests of the step.
        ids
            ``(T,)``, int32 or int64, with ``T = batch.num_tokens``.
        out
            ``(T, H)``, of the model's dtype.
        levels
            Deepstack levels ``(T, H)``. If the step has no rows of items, they are not written.
        store
            The worker's store, in a step.

        Returns
        -------
        int
            Number of rows of items that were placed.

        Raises
        ------
        RuntimeError
            If vLLM's encoder cache lacks an item of the step.
        ValueError
            If the rows of an item are fewer or of another width than its tokens need.
        """
        chunks, features = self._chunks_of(batch, store.on_device.source_key)
        plan = None
        if chunks:
            plan = StepPlan(chunks, read_requests(chunks, Chunk), b"", batch.num_tokens)
        if plan is None or not len(plan):
            self._text.write(ids, out)
            return 0
        store.wait_for_loads()
        call = self._text.begin(ids, out, levels)
        native = plan.make_placement()
        missing = store.on_device.sources.add_sources(plan, native, call.destination.native)
        rows = PlannedRows(plan, features, store)
        pending = rows.find_pending(missing)
        if pending:
            with store.placing(pending):
                reservations = rows.reservations()
                placed = Placement.from_native(call.destination, native, rows, missing, reservations)
                call.run_placed(placed, reservations)
        else:
            call.run_placed(Placement.from_native(call.destination, native, rows, missing))
        num_rows: int = native.num_placed
        store.counts.add(f"placements_{self._text.source}")
        store.counts.add("placed_rows", num_rows)
        return num_rows

    def _chunks_of(
        self, batch: StepBatch, key_of: Callable[[str], bytes]
    ) -> tuple[list[Chunk], list[Sequence[Any]]]:
        """Return the tokens of each request in prefill that has items, and vLLM's items of each chunk."""
        chunks: list[Chunk] = []
        features_of: list[Sequence[Any]] = []
        computed = batch.num_computed_tokens_np
        for index in np.flatnonzero(computed < batch.prefill_len_np).tolist():
            request = batch.req_ids[index]
            features = self._features.get(request)
            if not features:
                continue
            items = self._items.get(request)
            if items is None:
                items = self._items[request] = make_items(features, key_of)
            start = int(computed[index])
            # Draft tokens may follow the prompt. vLLM can drop some of them after it has counted them here.
            length = min(int(batch.num_scheduled_tokens[index]), int(batch.prefill_len_np[index]) - start)
            chunks.append(Chunk(items, start, length, int(batch.query_start_loc_np[index])))
            features_of.append(features)
        return chunks, features_of


def make_items(features: Sequence[Any], key_of: Callable[[str], bytes]) -> Items:
    """Return vLLM's items of a request, in their order, with the keys of their rows in `SourceTable`.

    `key_of` returns the key of an identifier.
    """
    items = []
    for feature in features:
        position = feature.mm_position
        spans = spans_from_placeholder(position.offset, position.length, position.is_embed)
        items.append(Item(None, spans, key=key_of(feature.identifier)))
    return Items(items)
