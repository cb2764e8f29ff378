"""Names of SGLang's modules. vitcache imports none of them: it uses those that the process has loaded."""

from __future__ import annotations

import sys
from typing import Any

MM_UTILS = "sglang.srt.managers.mm_utils"
MM_SCHEDULE = "sglang.srt.managers.mm_schedule"
SCHEDULE_BATCH = "sglang.srt.managers.schedule_batch"
SCHEDULER = "sglang.srt.managers.scheduler"
WEIGHT_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater"
RUNTIME_CONTEXT = "sglang.srt.runtime_context"
MEM_CACHE = "sglang.srt.mem_cache.common"
DP_ATTENTION = "sglang.srt.layers.dp_attention"


def parallel_value(name: str, default: Any) -> Any:
    """Return a value of SGLang's parallel configuration, such as ``tp_size``.

    `default`: the process has no configuration of SGLang, or none that has this value yet.

    Raises
    ------
    AttributeError
        If SGLang knows no value of this name.
    """
    context = sys.modules.get(RUNTIME_CONTEXT)
    try:
        return default if context is None else getattr(context.get_parallel(), name)
    except (ValueError, RuntimeError):
        return default


def server_arguments() -> Any:
    """Return SGLang's `ServerArgs`, or None if the process has set none."""
    context = sys.modules.get(RUNTIME_CONTEXT)
    try:
        return None if context is None else context.get_server_args()
    except ValueError:
        return None
