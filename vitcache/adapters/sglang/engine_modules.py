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


def server_arguments() -> Any:
    """Return SGLang's `ServerArgs`, or None if the process has set none."""
    context = sys.modules.get(RUNTIME_CONTEXT)
    try:
        return None if context is None else context.get_server_args()
    except ValueError:
        return None
