"""`Service`: the plug-in in one process of SGLang. It decides which steps vitcache builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.sglang.arrivals import Arrivals
from vitcache.adapters.sglang.counts import Counts, SglangStats
from vitcache.adapters.sglang.held_requests import HeldRequests
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.model_cache import StepShape
from vitcache.adapters.sglang.model_steps import ModelSteps
from vitcache.adapters.sglang.step_call import StepCall
from vitcache.adapters.sglang.stock_cache import STOCK_CACHE
from vitcache.adapters.sglang.token_offsets import token_offsets
from vitcache.rows import DTYPES


class Service:
    """The steps of a process, one `ModelStep` for each model with encoders.

    SGLang's scheduler calls it from one thread. `stats` may be called from any thread.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.models = ModelSteps(STOCK_CACHE, self.counts)
        self.arrivals = Arrivals(self.models, HeldRequests(self.counts))

    def make_early(self, model: Any, shape: StepShape) -> None:
        """Allocate the memory of the first step when a scheduler starts. As `ModelSteps.make_early`."""
        self.models.make_early(model, shape)

    def embed(
        self,
        requests: Sequence[Any],
        starts: Sequence[int],
        lengths: Sequence[int],
        input_ids: Tensor,
        input_embedding: Any,
        model: Any,
        functions: Mapping[Any, Any] | None,
        placeholder_tokens: Any,
        use_deepstack: Mapping[Any, bool],
        *,
        batch: Any,
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Build the result of SGLang's `embed_mm_inputs`, whose arguments these are, and `batch`.

        Parameters
        ----------
        requests, starts, lengths
            As in `StepCall`.
        input_ids
            The ids of the batch ``(tokens,)``, int64.
        input_embedding
            SGLang's embedding of text tokens, a module.
        model, functions
            As in `EncoderCalls.use`.
        batch
            The `ForwardBatch` of the running `prepare_mm_inputs`, or None.

        Returns
        -------
        tuple or None
            `inputs_embeds` ``(tokens, hidden)``, and the result of `ModelStep.embed`. None: SGLang's own
            function must run.

        Notes
        -----
        All work is queued on the current stream. As SGLang's function does, it clamps `input_ids` in place;
        if the result is None, `input_ids` is unchanged.
        """
        if is_disabled():
            self._leave("disabled")
            return None
        offsets = token_offsets(batch, requests, lengths, len(input_ids))
        if offsets is None:
            self._leave("positions")
            return None
        if _has_pruned_video(model, requests):
            self._leave("pruned_video")
            return None
        # Ids of placeholders are hash values: their rows are overwritten.
        ids = input_ids.clamp(min=0, max=input_embedding.num_embeddings - 1)
        rows = input_embedding(ids)
        if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.dtype not in DTYPES:
            self._leave("text_rows")
            return None
        if rows.device.type not in ("cpu", "cuda") or torch.version.hip is not None:
            self._leave("device")
            return None
        rows = rows.detach().contiguous()
        levels = len(model.deepstack_visual_indexes) if use_deepstack else 0
        step = self.models.step_of(model, StepShape(rows.shape[1], levels, rows.dtype, rows.device))
        placed = step.embed(
            StepCall(requests, starts, lengths, offsets, use_deepstack, batch), model, functions, rows
        )
        if placed is None:
            self._leave("pruned_video")
            return None
        input_ids.copy_(ids)
        return rows, placed

    def clear(self) -> None:
        """Remove every entry of every cache, also of SGLang's own. The weights lose their name."""
        LOADED.are_original = False
        STOCK_CACHE.clear()
        for cache in self.models.caches:
            cache.clear()

    def advance_epoch(self) -> None:
        """Make every entry of every cache unreachable, also of SGLang's own: the weights have changed."""
        LOADED.are_original = False
        STOCK_CACHE.clear()
        for cache in self.models.caches:
            cache.advance_epoch()

    def close(self) -> None:
        """Close all caches. Rows that wait for a lower tier are written first, for some seconds at most."""
        self.arrivals.held.clear()
        self.models.close()

    def stats(self) -> SglangStats:
        """Return the counts of this process."""
        found = []
        for cache in self.models.caches:
            with suppress(RuntimeError):  # another thread has just closed it
                found.append(cache.stats())
        return self.counts.read(tuple(found))

    def _leave(self, reason: str) -> None:
        """Count a step of SGLang's own function, whose cache then has its own size."""
        self.counts.add_original(reason)
        STOCK_CACHE.restore()


def _has_pruned_video(model: Any, requests: Sequence[Any]) -> bool:
    """Whether SGLang may prune a video of the step (EVS), and move its placeholders."""
    if not getattr(model, "evs_enabled", False):
        return False
    items = (item for request in requests for item in request.mm_items if item is not None)
    return any(item.modality.name == "VIDEO" for item in items)


SERVICE = Service()


def stats() -> SglangStats:
    """Return the counts of the plug-in in this process. Any thread may call it.

    The counts are those of one scheduler: a tensor parallel rank, for example.

    Examples
    --------
    >>> from vitcache.adapters.sglang import stats
    >>> stats().steps
    0
    """
    return SERVICE.stats()
