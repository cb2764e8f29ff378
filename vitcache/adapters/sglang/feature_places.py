"""Where SGLang keeps features: copies to host memory that may be in flight, and memory of other processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.sglang.engine_modules import MM_SCHEDULE, MM_UTILS, parallel_value
from vitcache.placement.spans import Span

# In `model_specific_data`. The first is an event behind an encoder's own copy of the feature to host memory.
_COPIED = "_sglang_cuda_ipc_feature_copy_event"
_BORROW = "_sglang_borrow_cuda_ipc_feature"


def wait_until_offloaded(source: Any, feature: Any) -> None:
    """Block the host until the copies of a feature to host memory are complete.

    SGLang copies the features of a chunk back without waiting. They can be read after its event. With
    SGLANG_MM_BUFFER_SIZE_MB, it copies each feature back when a request arrives, and records no event: the
    host waits for the current stream, which is ordered behind the copy.

    Parameters
    ----------
    source
        The `MultimodalDataItem` that has the feature.
    feature
        The feature, or precomputed rows.
    """
    if not _is_on_host(feature):
        return
    schedule = sys.modules.get(MM_SCHEDULE)
    for event in (getattr(schedule, "host_offload_event", None), source.model_specific_data.get(_COPIED)):
        if event is not None:
            event.synchronize()
    if getattr(sys.modules.get(MM_UTILS), "_GPU_FEATURE_BUFFER", None) is not None:
        torch.cuda.current_stream().synchronize()


def can_be_borrowed(source: Any) -> bool:
    """Whether the feature is in the memory of another process (CUDA IPC), and the encoder opens it."""
    is_deferred = getattr(source, "can_defer_cuda_ipc_feature_reconstruction", None)
    return is_deferred is not None and bool(is_deferred())


def lend(source: Any, spans: Sequence[Span], start: int, stop: int) -> None:
    """Let the encoder read a feature in the memory of another process, without a copy of its own.

    As SGLang does it for items whose tokens are all in the step ``[start, stop)``: no later step needs the
    feature.
    """
    if spans[0].start >= start and spans[-1].stop <= stop and can_be_borrowed(source):
        source.model_specific_data[_BORROW] = True


def can_be_opened(source: Any) -> bool:
    """Whether this rank may copy a feature out of the memory of another process, so that it can be hashed.

    With one tensor parallel rank, the encoder would do so. With several ranks, each feature is for one rank.
    """
    return can_be_borrowed(source) and bool(parallel_value("tp_size", None) == 1)


def open_feature(source: Any, device: torch.device) -> None:
    """Replace a feature in the memory of another process by a copy on a device, as its encoder would.

    The copy is queued on the current stream.
    """
    if can_be_borrowed(source):
        source.reconstruct(device.index)


def encoder_moves(embedder: Any) -> bool:
    """Whether an encoder of SGLang moves features to its device itself, in one copy for a batch."""
    schedule = sys.modules.get(MM_SCHEDULE)
    return schedule is not None and bool(schedule._can_skip_pre_embed_feature_move(embedder))


def _is_on_host(feature: Any) -> bool:
    if isinstance(feature, list | tuple):
        return any(map(_is_on_host, feature))
    return isinstance(feature, Tensor) and feature.device.type == "cpu"
