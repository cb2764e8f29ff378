"""`ModelSteps`: the steps of each model of a process, and their memory from the start of a scheduler on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.model_cache import StepShape
from vitcache.adapters.sglang.model_memory import ModelMemory, make_memory
from vitcache.adapters.sglang.model_step import ModelStep
from vitcache.adapters.sglang.options import Options
from vitcache.adapters.sglang.stock_cache import StockCache
from vitcache.cache.embedding_cache import EmbeddingCache


class ModelSteps:
    """One `ModelStep` for each model with encoders. SGLang's scheduler calls it from one thread.

    Parameters
    ----------
    stock_cache
        SGLang's own cache. When SGLang makes it again, all models get new caches.
    """

    def __init__(self, stock_cache: StockCache, counts: Counts) -> None:
        self._stock_cache = stock_cache
        self._counts = counts
        self._options: Options | None = None
        self._generation = stock_cache.generation
        self._steps: dict[tuple[int, StepShape], ModelStep] = {}
        self._early: tuple[StepShape, ModelMemory] | None = None  # until the first step, or the first fetch
        self._unused: ModelStep | None = None  # made for a fetch, until the first step

    @property
    def options(self) -> Options:
        """The operator's options."""
        if self._options is None:
            self._options = Options.from_environment()
        return self._options

    @property
    def caches(self) -> list[EmbeddingCache]:
        """The caches of all models. Any thread may read them."""
        early = self._early
        caches = [] if early is None else [early[1].cache]
        return caches + [step.cache for step in list(self._steps.values())]

    def make_early(self, model: Any, shape: StepShape) -> None:
        """Allocate the memory of the first step now, when a scheduler starts.

        If the first step has another shape, its memory replaces this one, as does that of a later scheduler.

        Raises
        ------
        MemoryError, OSError
            As `make_memory`.
        """
        # Also those of an earlier scheduler of this process: its cache of SGLang was replaced.
        self._close_replaced()
        self._close_early()
        self._early = shape, self._make_memory(model, shape)

    def step_of(self, model: Any, shape: StepShape) -> ModelStep:
        """Return the steps of a model that runs a step. The first step of a model makes its cache."""
        step = self._steps.get((id(model), shape))  # each step passes here
        if step is None or step.model() is not model or self._generation != self._stock_cache.generation:
            step = self._find_or_make(model, shape)
        self._unused = None
        return step

    def step_of_arrivals(self, model: Any) -> ModelStep | None:
        """Return the steps of a scheduler's model, also before the first one; None: its rows are unknown."""
        self._close_replaced()
        early = self._early
        if early is None:
            return next((step for step in self._steps.values() if step.model() is model), None)
        step = self._find_or_make(model, early[0])
        if self._early is None:  # it was made now
            self._unused = step
        return step

    def close(self) -> None:
        """Close all caches."""
        self._unused = None
        self._close(list(self._steps))
        self._close_early()

    def _find_or_make(self, model: Any, shape: StepShape) -> ModelStep:
        self._close_replaced()
        step = self._steps.get((id(model), shape))
        if step is not None and step.model() is model:
            return step
        unused, self._unused = self._unused, None
        # A model that was collected can have had the same id.
        self._close([name for name, step in self._steps.items() if step.is_orphan or step is unused])
        memory = self._memory_for(model, shape)
        step = ModelStep(model, shape, memory, self.options, self._counts)
        self._steps[id(model), shape] = step
        return step

    def _close_replaced(self) -> None:
        """Close all caches if SGLang has made its own one again, which may have another size now."""
        if self._generation != self._stock_cache.generation:
            self._generation = self._stock_cache.generation
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
        return make_memory(model, shape, self._stock_cache.reserved_bytes, self.options)

    def _close(self, names: Sequence[tuple[int, StepShape]]) -> None:
        for name in names:
            self._steps.pop(name).close()
