"""Ends the request of an item that has no rows, as SGLang ends a request whose KV could not be loaded.

This module imports neither torch nor the rest of vitcache's step, because `hooks` imports it.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from vitcache.adapters.sglang.engine_modules import SCHEDULE_BATCH, parallel_value

# The scheduler and the `ScheduleBatch` of the running `Scheduler.run_batch`, or None outside of it.
RUN: ContextVar[tuple[Any, Any] | None] = ContextVar("vitcache.run", default=None)


def end_requests(inputs: Any, message: str) -> int:
    """End the requests of the running batch that have these items. Returns their number.

    SGLang then drops the output of this step, keeps the KV of the request out of its prefix cache, and sends
    the client an error with status 500. A prompt of which chunks are left is not continued.

    Parameters
    ----------
    inputs
        SGLang's `MultimodalInputs` of the request. SGLang may share one object between requests.
    message
        The text for the client.

    Returns
    -------
    int
        0: no request is ended. SGLang does not look at the mark in batches of diffusion models, other
        pipeline stages would continue, and outside of `Scheduler.run_batch` no request is known.
    """
    run = RUN.get()
    if run is None:
        return 0
    scheduler, batch = run
    if batch.is_dllm() or parallel_value("pp_size", 1) > 1:
        return 0
    # The turns of a session can share their items. One that decodes is behind them, and its output is right.
    decoding = set(map(id, batch.decoding_reqs or ()))
    requests = [
        request
        for request in batch.reqs
        # A version of SGLang that was not tested may not have the mark.
        if request.multimodal_inputs is inputs
        and id(request) not in decoding
        and hasattr(request, "discard_output_reason")
    ]
    for request in requests:
        _end(scheduler, request, message)
    return len(requests)


def _end(scheduler: Any, request: Any, message: str) -> None:
    """Mark a request. SGLang reads the marks when it processes the result of the step, or of a later one."""
    reason = sys.modules[SCHEDULE_BATCH].FINISH_ABORT(
        message, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"
    )
    request.skip_radix_cache_insert = True
    _keep_items(request)
    is_chunked = scheduler.chunked_req is request
    if request.beam_group is not None and not is_chunked:
        # The step has already made the members of the group, and `discard_output_reason` would not free them.
        request.to_finish = reason
        return
    request.discard_output_reason = reason
    if is_chunked:
        scheduler._pending_chunked_abort_req = request


def _keep_items(request: Any) -> None:
    """Let a turn of a session keep its items, so that a turn that continues it encodes them again.

    SGLang releases the items of an aborted turn, but not the ids of their placeholders. In the next turn, it
    would look them up in the table of text tokens, and the engine would end. A streaming session continues
    the last turn that was answered.
    """
    session = request.session
    if session is not None and not session.streaming:
        request.release_mm_inputs_on_abort = _release_nothing  # they are released with the session


def _release_nothing() -> None:
    """In place of `Req.release_mm_inputs_on_abort`."""
