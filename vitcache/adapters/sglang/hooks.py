"""The hooks: functions that SGLang calls around its own. The first argument is SGLang's function.

This module imports neither torch nor the rest of vitcache, because each process of SGLang imports it. The
service is imported in the first call, in the process that embeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vitcache.adapters.sglang.failed_requests import RUN
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.tenant import remember_tenant

if TYPE_CHECKING:
    from vitcache.adapters.sglang.service import Service

# The batch of the running `prepare_mm_inputs`: `embed_mm_inputs` gets only parts of it.
FORWARD_BATCH: ContextVar[Any] = ContextVar("vitcache.forward_batch", default=None)
# Whether SGLang's own `embed_mm_inputs` runs for a batch that vitcache gave to it.
_IS_ORIGINAL: ContextVar[bool] = ContextVar("vitcache.is_original", default=False)


def _service() -> Service:
    from vitcache.adapters.sglang.service import SERVICE

    return SERVICE


def _used_service() -> Service | None:
    """Return the service if this process has imported it: else no step was embedded."""
    # A thread that calls `stats` may just be importing the module, which has no service yet.
    service: Service | None = getattr(sys.modules.get("vitcache.adapters.sglang.service"), "SERVICE", None)
    return service


def around_run_batch(
    original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any
) -> Any:
    """`Scheduler.run_batch`: an item that fails in it can end its request."""
    token = RUN.set((scheduler, batch))
    try:
        return original(scheduler, batch, *args, **kwargs)
    finally:
        RUN.reset(token)


def around_prepare(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`prepare_mm_inputs`: remembers the batch, and leaves all work to SGLang."""
    batch = kwargs["forward_batch"] if "forward_batch" in kwargs else args[1]
    token = FORWARD_BATCH.set(batch)
    try:
        return original(*args, **kwargs)
    finally:
        FORWARD_BATCH.reset(token)


def around_embed(
    original: Callable[..., Any],
    mm_inputs_list: Any,
    extend_prefix_lens: Any,
    extend_seq_lens: Any,
    input_ids: Any,
    input_embedding: Any,
    multimodal_model: Any = None,
    data_embedding_func_mapping: Any = None,
    placeholder_tokens: Any = None,
    use_deepstack: Any = None,
) -> Any:
    """`embed_mm_inputs`: the step of vitcache. SGLang's function runs for the batches that it must have."""
    arguments = (
        *(mm_inputs_list, extend_prefix_lens, extend_seq_lens, input_ids, input_embedding),
        *(multimodal_model, data_embedding_func_mapping, placeholder_tokens, use_deepstack or {}),
    )
    if not _IS_ORIGINAL.get() and mm_inputs_list is not None:
        embedded = _service().embed(*arguments, batch=FORWARD_BATCH.get())
        if embedded is not None:
            return embedded
    token = _IS_ORIGINAL.set(True)
    try:
        return original(*arguments)
    finally:
        _IS_ORIGINAL.reset(token)


def around_extend_items(original: Callable[..., Any], request: Any, *args: Any, **kwargs: Any) -> Any:
    """`Req.extend_image_inputs`: the items of a request remember its tenant."""
    result = original(request, *args, **kwargs)
    remember_tenant(request)
    return result


def around_add_request(
    original: Callable[..., Any], scheduler: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """`Scheduler._add_request_to_queue`: begins to fetch the rows of a request that enters the queue."""
    service = _used_service()
    if service is None:
        return original(scheduler, request, *args, **kwargs)
    with service.arrivals.held.entry(scheduler):
        result = original(scheduler, request, *args, **kwargs)
        service.arrivals.fetch(scheduler, request)
    return result


def around_new_batch(
    original: Callable[..., Any], scheduler: Any, running_batch: Any, *args: Any, **kwargs: Any
) -> Any:
    """`Scheduler.get_new_batch_prefill`: leaves out requests whose rows are still being fetched."""
    service = _used_service()
    # A request whose grammar is ready enters the queue inside of the call.
    if service is None or not service.arrivals.are_fetched:
        return original(scheduler, running_batch, *args, **kwargs)
    with service.arrivals.held.choice(scheduler):
        plan = original(scheduler, running_batch, *args, **kwargs)
    if plan.batch_to_run is None and plan.running_batch.is_empty():
        service.arrivals.held.pause()
    return plan


def around_flush(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`Scheduler.flush_cache`: removes every entry, if SGLang has flushed its own caches."""
    is_flushed = original(*args, **kwargs)
    service = _used_service()
    if is_flushed:
        LOADED.are_original = False
        if service is not None:
            service.clear()
    return is_flushed


def around_internal_state(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`Scheduler.get_internal_state`: adds the counts of this process, which `/server_info` shows."""
    answer = original(*args, **kwargs)
    state = getattr(answer, "internal_state", None)
    if isinstance(state, dict):
        from vitcache.adapters.sglang.server_info import server_counts

        state["vitcache"] = server_counts()
    return answer


def around_update(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A weight update: rows of the old weights become unreachable, also if the update fails half-way."""
    try:
        return original(*args, **kwargs)
    finally:
        LOADED.are_original = False
        service = _used_service()
        if service is not None:
            service.advance_epoch()
