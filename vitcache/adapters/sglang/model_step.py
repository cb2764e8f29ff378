"""`ModelStep`: the steps of one model of SGLang, over one cache."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.encoder_calls import EncoderCalls, PrunedVideo, max_rows_per_encode
from vitcache.adapters.sglang.failed_items import FailedItem, report
from vitcache.adapters.sglang.fetched_items import FetchedItems
from vitcache.adapters.sglang.held_requests import AnyRank
from vitcache.adapters.sglang.item_factory import ItemFactory
from vitcache.adapters.sglang.model_cache import StepShape
from vitcache.adapters.sglang.model_memory import ModelMemory
from vitcache.adapters.sglang.namespace import namespace_of
from vitcache.adapters.sglang.options import Options
from vitcache.adapters.sglang.ranks import Ranks, RanksDiffer
from vitcache.adapters.sglang.request_items import RequestItems
from vitcache.adapters.sglang.step_call import StepCall
from vitcache.pipeline.items import Chunk
from vitcache.pipeline.vision_pipeline import VisionPipeline


class ModelStep:
    """Builds the `inputs_embeds` of the steps of one model. One thread uses it.

    Parameters
    ----------
    model
        The model of SGLang, or None. It is referred to weakly, if its class allows that.
    shape
        The rows of the model.
    memory
        The cache of its rows, and the ring that its features pass. The object closes both.
    """

    def __init__(
        self,
        model: Any,
        shape: StepShape,
        memory: ModelMemory,
        options: Options,
        counts: Counts,
    ) -> None:
        self.model = _reference(model)
        self.shape = shape
        self._counts = counts
        # Until the first step tells it.
        self._deepstack: Mapping[Any, bool] = getattr(model, "use_deepstack", None) or {}
        self._ranks = Ranks.of_scheduler()
        self._calls = EncoderCalls(counts, shape.dtype, self._ranks)
        self.cache = memory.cache
        self._memory = memory
        self._pipeline = VisionPipeline(
            self._calls.encode,
            self.cache,
            namespace=namespace_of(model, shape.dtype),
            ring=memory.ring,
            max_rows_per_encode=max_rows_per_encode(options),
            agree=self._ranks,
        )
        self._factory = ItemFactory(
            self._row_width,
            self._calls.embedder,
            shape.device,
            shape.dtype,
            options.trust_engine_hash,
            counts,
        )

    @property
    def is_orphan(self) -> bool:
        """Whether the model was collected."""
        return isinstance(self.model, weakref.ref) and self.model() is None

    @property
    def any_rank(self) -> AnyRank | None:
        """As in `HeldRequests`."""
        return None if self._ranks is None else self._ranks.any_rank

    def embed(
        self, call: StepCall, model: Any, functions: Mapping[Any, Any] | None, inputs_embeds: Tensor
    ) -> dict[str, Tensor] | None:
        """Write the rows of a step's items into `inputs_embeds` ``(tokens, hidden)``, which has text rows.

        Parameters
        ----------
        model, functions
            The encoders of the step, as in `EncoderCalls.use`.

        Returns
        -------
        dict or None
            With deepstack, the tensor ``input_deepstack_embeds`` ``(tokens, hidden * levels)``, zero at text
            tokens. None: an encoder has pruned rows of a video, and SGLang must compute the step.

        Raises
        ------
        RuntimeError, ValueError
            If the calls of tensor parallel ranks differ, or another rank is lost.
        """
        self._deepstack = call.use_deepstack
        self._calls.use(model, functions)
        try:
            return self._place(call, inputs_embeds)
        except RanksDiffer as differ:
            raise RuntimeError(f"vitcache: {differ}") from differ
        finally:
            self._calls.use(None, None)

    def fetch(self, inputs: Any, start: int, stop: int) -> FetchedItems | None:
        """Begin to fetch the rows of a request from the tiers below the host tier.

        Parameters
        ----------
        inputs
            SGLang's `MultimodalInputs` of a request.
        start, stop
            The tokens that SGLang will compute.

        Returns
        -------
        FetchedItems or None
            None: all rows are in memory already, or none can be fetched.

        Raises
        ------
        RuntimeError
            As `FetchedItems.begin`.
        """
        fetched = FetchedItems(inputs, start, stop, self._factory, self._pipeline)
        if fetched.are_cached:
            return None
        fetched.begin()
        return fetched

    def _place(self, call: StepCall, inputs_embeds: Tensor) -> dict[str, Tensor] | None:
        hidden, levels = self.shape.hidden, self.shape.levels
        info: dict[str, Tensor] = {}
        if call.use_deepstack:  # also of a model without levels, whose tensor has no columns
            info["input_deepstack_embeds"] = inputs_embeds.new_zeros(len(inputs_embeds), hidden * levels)
        chunks: list[Chunk] = []
        placed: list[tuple[int, RequestItems]] = []
        windows = zip(call.requests, call.starts, call.lengths, call.offsets, strict=False)
        for number, (request, start, length, offset) in enumerate(windows):
            if length > 0 and request.mm_items:
                request_items = RequestItems.of(request)
                items = request_items.read(request.mm_items, start, start + length, self._factory)
                chunks.append(Chunk(items, start, length, offset))
                placed.append((number, request_items))
        deepstack = info["input_deepstack_embeds"] if levels else None
        if self._ranks is not None:
            self._ranks.begin()
        errors = self._pipeline.place(chunks, inputs_embeds, deepstack=deepstack).errors
        if self._ranks is not None:
            errors = self._ranks.share_errors(errors, chunks, inputs_embeds, deepstack)
        for _, request_items in placed:
            request_items.store_keys()
        failed: list[FailedItem] = []
        if errors:
            for error in errors:
                drop_frames(error.cause)
            if any(isinstance(error.cause, PrunedVideo) for error in errors):
                return None
            failed = [FailedItem.from_error(error, placed[error.chunk][0]) for error in errors]
        for number, request_items in placed:
            if request_items.left_out:
                failed += [FailedItem(number, item, text) for item, text in request_items.left_out]
                request_items.left_out = []
        if failed:
            report(failed, call.requests, call.batch, self._counts)
        self._counts.steps += 1
        return info

    def _row_width(self, modality: Any) -> int:
        has_levels = bool(self._deepstack.get(modality))
        return self.shape.hidden * (1 + self.shape.levels) if has_levels else self.shape.hidden

    def close(self) -> None:
        """Close the pipeline, the ring and the cache."""
        self._pipeline.close()
        self._memory.close()


def drop_frames(error: BaseException | None) -> None:
    """Remove the tracebacks of an error, and of the errors that it was raised for.

    Their frames refer to the features of the step, and to the error: a cycle, which would keep the features
    in memory until the next garbage collection.
    """
    waiting = [error]
    while waiting:  # a long chain, such as that of retries, would be too deep for a recursion
        error = waiting.pop()
        if error is not None and error.__traceback__ is not None:
            # The class of the error may forbid to set attributes, as that of a frozen dataclass does.
            BaseException.with_traceback(error, None)
            waiting += [error.__cause__, error.__context__]


def _reference(model: Any) -> Callable[[], Any]:
    """Return a function that returns `model` while it lives."""
    try:
        return weakref.ref(model)
    except TypeError:  # such as None
        return lambda: model
