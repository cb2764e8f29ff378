"""Features that SGLang has copied back to host memory, and may still be copying."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

_SCHEDULE = "sglang.srt.managers.mm_schedule"


def wait_until_offloaded(feature: Any) -> None:
    """Block the host until SGLang's last copies of features to host memory are complete.

    SGLang copies the features of a chunk back without waiting. They can be read after its event.
    """
    schedule = sys.modules.get(_SCHEDULE)
    event = getattr(schedule, "host_offload_event", None)
    if event is not None and _is_on_host(feature):
        event.synchronize()


def encoder_moves(embedder: Any) -> bool:
    """Whether an encoder of SGLang moves features to its device itself, in one copy for a batch."""
    schedule = sys.modules.get(_SCHEDULE)
    return schedule is not None and bool(schedule._can_skip_pre_embed_feature_move(embedder))


def _is_on_host(feature: Any) -> bool:
    if isinstance(feature, list | tuple):
        return any(map(_is_on_host, feature))
    return isinstance(feature, Tensor) and feature.device.type == "cpu"
