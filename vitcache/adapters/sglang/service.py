"""`Service`: the plug-in in one process of SGLang. It decides which steps vitcache builds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.sglang.arrivals import can_hold, uncached_tokens
from vitcache.adapters.sglang.counts import Counts, SglangStats
from vitcache.adapters.sglang.held_requests import HeldRequests
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.model_cache import FETCH_TIMEOUT_S, StepShape
from vitcache.adapters.sglang.model_memory import ModelMemory, make_memory
from vitcache.adapters.sglang.model_step import ModelStep, StepCall
from vitcache.adapters.sglang.options import Options
from vitcache.adapters.sglang.stock_cache import STOCK_CACHE
from vitcache.adapters.sglang.token_offsets import token_offsets
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.rows import DTYPES

logger = logging.getLogger("vitcache.adapters.sglang")


class Service:
    """The steps of a process, one `ModelStep` for each model with encoders.

    SGLang's scheduler calls it from one thread. `stats` may be called from any thread.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self._options: Options | None = None
        self._generation = STOCK_CACHE.generation
        self._steps: dict[tuple[int, StepShape], ModelStep] = {}
        self._early: tuple[StepShape, ModelMemory] | None = None  # until the first step or fetch
        self._unused: ModelStep | None = None  # made for a fetch, before its first step
        self._has_failed = False  # whether a fetch has failed
        self.held = HeldRequests(self.counts)

    def make_early(self, model: Any, shape: StepShape) -> None:
        """Allocate the memory of the first step now, when a scheduler starts.

        If the first step has another shape, its memory replaces this one, as does that of a later scheduler.

        Raises
        ------
        MemoryError
            As `make_memory`.
        """
        # Also those of an earlier scheduler of this process: its cache of SGLang was replaced.
        if self._generation != STOCK_CACHE.generation:
            self._close_replaced()
        self._close_early()
        self._early = shape, self._make_memory(model, shape)

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
        step = self._step_of(model, StepShape(rows.shape[1], levels, rows.dtype, rows.device))
        self._unused = None
        placed = step.embed(
            StepCall(requests, starts, lengths, offsets, use_deepstack, batch), model, functions, rows
        )
        if placed is None:
            self._leave("pruned_video")
            return None
        input_ids.copy_(ids)
        return rows, placed

    @property
    def fetches(self) -> bool:
        """Whether there is a disk: rows of waiting requests are fetched from it."""
        return self._read_options().disk is not None and not is_disabled()

    def fetch(self, scheduler: Any, request: Any) -> None:
        """Begin to fetch the rows of a `Req` that has entered the queue of SGLang's `Scheduler`.

        The request is held until they are fetched, or `FETCH_TIMEOUT_S` are over. It is not
        held with several pipeline stages, which choose their batches at different times. A fetch that fails
        is logged, and a step encodes the items.
        """
        inputs = request.multimodal_inputs
        if inputs is None or not inputs.mm_items or not self.fetches:
            return
        step = self._step_of_arrivals(scheduler)
        if step is None:
            return
        arrival = None
        try:
            arrival = step.fetch(inputs, *uncached_tokens(scheduler, request))
        except Exception:  # a request must not end the engine before its first step
            if not self._has_failed:
                self._has_failed = True
                logger.warning("vitcache cannot fetch rows from the disk", exc_info=True)
        # Ranks have different rows in memory, and yet must hold the same requests.
        if can_hold() and (arrival is not None or step.any_rank is not None):
            self.held.any_rank = step.any_rank
            self.held.add(request, arrival, FETCH_TIMEOUT_S)

    def clear(self) -> None:
        """Remove every entry of every cache, also of SGLang's own. The weights lose their name."""
        LOADED.are_original = False
        STOCK_CACHE.clear()
        for cache in self._caches():
            cache.clear()

    def advance_epoch(self) -> None:
        """Make every entry of every cache unreachable, also of SGLang's own: the weights have changed."""
        LOADED.are_original = False
        STOCK_CACHE.clear()
        for cache in self._caches():
            cache.advance_epoch()

    def _caches(self) -> list[EmbeddingCache]:
        early = self._early
        caches = [] if early is None else [early[1].cache]
        return caches + [step.cache for step in list(self._steps.values())]

    def stats(self) -> SglangStats:
        """Return the counts of this process."""
        found = []
        for cache in self._caches():
            with suppress(RuntimeError):  # another thread has just closed it
                found.append(cache.stats())
        return self.counts.read(tuple(found))

    def _leave(self, reason: str) -> None:
        """Count a step of SGLang's own function, whose cache then has its own size."""
        self.counts.add_original(reason)
        STOCK_CACHE.restore()

    def _step_of(self, model: Any, shape: StepShape) -> ModelStep:
        """Return the steps of a model. The first step of a model makes its cache."""
        if self._generation != STOCK_CACHE.generation:
            self._close_replaced()
        step = self._steps.get((id(model), shape))
        if step is not None and step.model() is model:
            return step
        unused, self._unused = self._unused, None
        # A model that was collected can have had the same id.
        self._close([name for name, step in self._steps.items() if step.is_orphan or step is unused])
        memory = self._memory_for(model, shape)
        step = ModelStep(model, shape, memory, self._read_options(), self.counts)
        self._steps[id(model), shape] = step
        return step

    def close(self) -> None:
        """Close all caches. What waits to be written to a disk is written before, for some seconds at most."""
        self.held.clear()
        self._unused = None
        self._close(list(self._steps))
        self._close_early()

    def _step_of_arrivals(self, scheduler: Any) -> ModelStep | None:
        """Return the steps of a scheduler's model, also before the first one; None: its rows are unknown."""
        if self._generation != STOCK_CACHE.generation:
            self._close_replaced()
        model = scheduler.tp_worker.model_runner.model
        early = self._early
        if early is None:
            return next((step for step in self._steps.values() if step.model() is model), None)
        step = self._step_of(model, early[0])
        self._unused = step
        return step

    def _close_replaced(self) -> None:
        """Close all caches: SGLang has made its own one again, which may have another size now."""
        self._generation = STOCK_CACHE.generation
        self._options = None  # the operator may have changed them
        self.close()

    def _close_early(self) -> None:
        early, self._early = self._early, None
        if early is not None:
            early[1].close()

    def _memory_for(self, model: Any, shape: StepShape) -> ModelMemory:
        """Return the memory of `make_early`, once, or new memory. That of another shape is closed first."""
        early = self._early
        if early is not None and early[0] == shape:
            self._early = None
            return early[1]
        self._close_early()
        return self._make_memory(model, shape)

    def _make_memory(self, model: Any, shape: StepShape) -> ModelMemory:
        return make_memory(model, shape, STOCK_CACHE.reserved_bytes, self._read_options())

    def _read_options(self) -> Options:
        if self._options is None:
            self._options = Options.from_environment()
        return self._options

    def _close(self, names: Sequence[tuple[int, StepShape]]) -> None:
        for name in names:
            self._steps.pop(name).close()


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
