"""The functions of SGLang that the plug-in hooks, and the check that the hooks are in place."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from vitcache.adapters.sglang import hooks
from vitcache.adapters.sglang.engine_modules import MM_UTILS, SCHEDULE_BATCH, SCHEDULER, WEIGHT_UPDATER

UPDATER = "SchedulerWeightUpdaterManager"


class Target(NamedTuple):
    """A function of SGLang, its hook, and the parameters that the hook relies on, in order.

    Attributes
    ----------
    module, name
        Where the function is. The name of a method has the class in front of it.
    hook
        The function that is called around the target, with the target itself in front of the arguments.
    parameters
        The first parameters of the target. It may have more.
    """

    module: str
    name: str
    hook: Callable[..., Any]
    parameters: tuple[str, ...]

    @property
    def path(self) -> str:
        """The target as SGLang's hook registry names it."""
        return f"{self.module}.{self.name}"

    def find(self) -> Any:
        """Return the function that SGLang calls now, or None if it or its module is missing."""
        found: Any = sys.modules.get(self.module)
        for part in self.name.split("."):
            found = getattr(found, part, None)
        return found


TARGETS = (
    Target(MM_UTILS, "prepare_mm_inputs", hooks.around_prepare, ("input_ids", "forward_batch")),
    Target(
        MM_UTILS,
        "embed_mm_inputs",
        hooks.around_embed,
        (
            *("mm_inputs_list", "extend_prefix_lens", "extend_seq_lens", "input_ids", "input_embedding"),
            *("multimodal_model", "data_embedding_func_mapping", "placeholder_tokens", "use_deepstack"),
        ),
    ),
    Target(SCHEDULE_BATCH, "Req.extend_image_inputs", hooks.around_extend_items, ("self", "image_inputs")),
    Target(SCHEDULER, "Scheduler.run_batch", hooks.around_run_batch, ("self", "batch")),
    Target(SCHEDULER, "Scheduler._add_request_to_queue", hooks.around_add_request, ("self", "req")),
    Target(SCHEDULER, "Scheduler.get_new_batch_prefill", hooks.around_new_batch, ("self", "running_batch")),
    Target(SCHEDULER, "Scheduler.flush_cache", hooks.around_flush, ("self",)),
    Target(SCHEDULER, "Scheduler.get_internal_state", hooks.around_internal_state, ("self", "recv_req")),
    *(
        Target(WEIGHT_UPDATER, f"{UPDATER}.{name}", hooks.around_update, ("self", "recv_req"))
        for name in (
            "update_weights_from_disk",
            "update_weights_from_distributed",
            "update_weights_from_tensor",
            "update_weights_from_ipc",
            "end_weight_update",
        )
    ),
)


def check_targets() -> None:
    """Check that each target of a loaded module has its hook and the expected parameters.

    SGLang logs a hook that it could not apply, and serves without it.

    Raises
    ------
    RuntimeError
        If a target is missing, has other parameters, or its hook is not called. The message names the target.
    """
    for target in TARGETS:
        check_target(target)


def check_target(target: Target) -> None:
    """Check one target. Raises as `check_targets`."""
    if target.module not in sys.modules:
        _refuse(f"{target.module} is not loaded in the scheduler")
    found = target.find()
    if found is None:
        _refuse(f"{target.path} is missing")
    parameters = tuple(inspect.signature(found).parameters)  # of the innermost function
    if parameters[: len(target.parameters)] != target.parameters:
        _refuse(
            f"{target.path} has the parameters {parameters}, vitcache expects that they begin with "
            f"{target.parameters}"
        )
    if not _calls(found, target.hook):
        _refuse(f"{target.path} does not call the hook of vitcache")


def _calls(function: Any, hook: Callable[..., Any]) -> bool:
    """Whether a function, or one that it wraps, was made for a hook: its closure contains the hook."""
    while function is not None:
        cells = getattr(function, "__closure__", None) or ()
        if any(_content(cell) is hook for cell in cells):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None


def _refuse(message: str) -> NoReturn:
    raise RuntimeError(
        f"{message}: SGLang would serve without vitcache. Install a tested version of SGLang, or set "
        "VITCACHE_DISABLE=1, or leave vitcache out of SGLANG_PLUGINS"
    )
