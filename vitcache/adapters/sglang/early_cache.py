"""The memory of a scheduler's model, allocated when the scheduler starts: it cannot run out in a step."""

from __future__ import annotations

import sys
from typing import Any

import torch

from vitcache.adapters.sglang import service
from vitcache.adapters.sglang.engine_modules import DP_ATTENTION
from vitcache.adapters.sglang.model_cache import StepShape
from vitcache.adapters.sglang.model_memory import ENCODERS


def make_early(scheduler: Any) -> None:
    """Allocate the tiers and the ring of a scheduler's model, unless the scheduler runs no encoders.

    Raises
    ------
    MemoryError
        As `make_memory`.
    """
    shape = expected_shape(scheduler)
    if shape is None:
        return
    service.SERVICE.make_early(scheduler.tp_worker.model_runner.model, shape)
    if shape.device.type == "cuda":  # the steps run on another stream, which may write to the pages at once
        torch.cuda.synchronize(shape.device)


def expected_shape(scheduler: Any) -> StepShape | None:
    """Return the rows of the steps that a scheduler will run; None: unknown, or it runs no encoders.

    Parameters
    ----------
    scheduler
        SGLang's `Scheduler`, after its `__init__`.
    """
    config = getattr(scheduler, "model_config", None)
    if config is None or not _runs_encoders():
        return None
    model = scheduler.tp_worker.model_runner.model
    group = getattr(model, "pp_group", None)
    if not any(hasattr(model, name) for name in ENCODERS) or (group is not None and not group.is_first_rank):
        return None
    hidden, dtype = getattr(config, "hidden_size", None), getattr(config, "dtype", None)
    device = next((parameter.device for parameter in model.parameters()), None)
    if not isinstance(hidden, int) or not isinstance(dtype, torch.dtype) or device is None:
        return None
    if device.type not in ("cpu", "cuda") or torch.version.hip is not None:
        return None
    levels = len(model.deepstack_visual_indexes) if getattr(model, "use_deepstack", None) else 0
    return StepShape(hidden, levels, dtype, device)


def _runs_encoders() -> bool:
    """Whether encoders run in this process: not in an instance that decodes or that has an encoder server."""
    runs_here = getattr(sys.modules.get(DP_ATTENTION), "multimodal_encoder_runs_here", None)
    return runs_here is None or bool(runs_here())
