"""`Arrivals`: requests that enter SGLang's waiting queue, and whose rows are fetched from lower tiers."""

from __future__ import annotations

import logging
import sys
from typing import Any

from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.sglang.engine_modules import MEM_CACHE, parallel_value
from vitcache.adapters.sglang.held_requests import HeldRequests
from vitcache.adapters.sglang.model_cache import FETCH_TIMEOUT_S
from vitcache.adapters.sglang.model_steps import ModelSteps

logger = logging.getLogger("vitcache.adapters.sglang")


class Arrivals:
    """Begins a fetch for each request that arrives. SGLang's scheduler thread uses it.

    Attributes
    ----------
    held
        The requests that wait for their rows.
    """

    def __init__(self, models: ModelSteps, held: HeldRequests) -> None:
        self._models = models
        self._has_failed = False
        self.held = held

    @property
    def are_fetched(self) -> bool:
        """Whether there is a tier below the host tier."""
        return self._models.options.has_tiers and not is_disabled()

    def fetch(self, scheduler: Any, request: Any) -> None:
        """Begin to fetch the rows of a `Req` that has entered the queue of SGLang's `Scheduler`, and hold it.

        It is held until the rows are there, at most `FETCH_TIMEOUT_S`. With several pipeline stages it is not
        held: they choose their batches at different times. The first fetch that cannot begin is logged as a
        warning; a step encodes the items.
        """
        inputs = request.multimodal_inputs
        if inputs is None or not inputs.mm_items or not self.are_fetched:
            return
        step = self._models.step_of_arrivals(scheduler.tp_worker.model_runner.model)
        if step is None:
            return
        arrival = None
        try:
            arrival = step.fetch(inputs, *uncached_tokens(scheduler, request))
        except Exception:  # a request must not end the engine before its first step
            if not self._has_failed:
                self._has_failed = True
                logger.warning("vitcache cannot fetch rows from the tiers below the host tier", exc_info=True)
        # Ranks have different rows in memory, and must hold the same requests.
        if parallel_value("pp_size", 1) == 1 and (arrival is not None or step.any_rank is not None):
            self.held.any_rank = step.any_rank
            self.held.add(request, arrival, FETCH_TIMEOUT_S)


def uncached_tokens(scheduler: Any, request: Any) -> tuple[int, int]:
    """Return the tokens of a request without KV in SGLang's prefix cache, as (first, one after the last).

    Parameters
    ----------
    scheduler
        SGLang's `Scheduler`.
    request
        A `Req` with items.
    """
    num_tokens = len(request.origin_input_ids) + len(request.output_ids)
    # A look-up for a turn of a streaming session would take the KV of the session.
    if request.session is not None and request.session.streaming:
        return 0, num_tokens
    sys.modules[MEM_CACHE].match_kv_cache(request, scheduler.tree_cache)  # as its scheduling policies do
    return request.num_matched_prefix_tokens, num_tokens
