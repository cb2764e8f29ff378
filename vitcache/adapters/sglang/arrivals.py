"""Requests that enter SGLang's waiting queue: their tokens without KV, and whether they can be held."""

from __future__ import annotations

import sys
from typing import Any

from vitcache.adapters.sglang.engine_modules import MEM_CACHE, parallel_value


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


def can_hold() -> bool:
    """Whether the requests of this process can be held: its ranks choose their batches at one time."""
    return bool(parallel_value("pp_size", 1) == 1)
