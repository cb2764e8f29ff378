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
DP_ATTENTION = "sglang.srt.layers.dp_attention"


def tensor_parallel_rank() -> tuple[int, int]:
    """Return the tensor parallel rank of this process and the number of ranks, ``(0, 1)`` if none is set."""
    context = sys.modules.get(RUNTIME_CONTEXT)
    if context is None:
        return 0, 1
    parallel = context.get_parallel()
    try:
        return parallel.tp_rank, parallel.tp_size
    except (AttributeError, RuntimeError, ValueError):
        return 0, 1


def server_arguments() -> Any:
    """Return SGLang's `ServerArgs`, or None if the process has set none."""
    context = sys.modules.get(RUNTIME_CONTEXT)
    try:
        return None if context is None else context.get_server_args()
    except ValueError:
        return None
