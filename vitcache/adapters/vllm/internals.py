"""The internals of vLLM that a placement relies on, checked when a worker starts."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from typing import Any

STATE = "vllm.v1.worker.gpu.model_states.default"
RUNNER = "vllm.v1.worker.gpu.mm.encoder_runner"
BATCHING = "vllm.multimodal.utils"

# Functions, and the names of their parameters.
FUNCTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    (STATE, "DefaultModelState.__init__"): ("self", "vllm_config", "model", "encoder_cache", "device"),
    (STATE, "DefaultModelState.prepare_inputs_embeds"): (
        *("self", "scheduled_encoder_inputs", "input_batch", "req_states"),
    ),
    (STATE, "DefaultModelState.execute_mm_encoder"): ("self", "scheduled_encoder_inputs"),
    (STATE, "DefaultModelState.gather_mm_embeddings"): ("self", "input_batch", "draft_lookahead"),
    (STATE, "DefaultModelState.remove_request"): ("self", "req_id"),
    (RUNNER, "EncoderRunner.prepare_mm_inputs"): ("self", "scheduled_encoder_inputs"),
    (RUNNER, "EncoderRunner.execute_mm_encoder"): ("self", "mm_kwargs"),
    (RUNNER, "EncoderRunner.timed_encoder_operation"): ("self", "request_ids"),
    (RUNNER, "sanity_check_mm_encoder_outputs"): ("mm_embeddings", "expected_num_items"),
    (BATCHING, "_can_batch_mm_items"): ("left", "right"),
    ("vllm.multimodal.inputs", "BaseMultiModalField.reduce_data"): ("self", "elems", "device", "pin_memory"),
}
BATCH = ("vllm.v1.worker.gpu.input_batch", "InputBatch")
BATCH_FIELDS = (
    *("req_ids", "num_tokens", "num_tokens_after_padding", "num_scheduled_tokens", "num_computed_tokens_np"),
    *("prefill_len_np", "query_start_loc_np", "has_prefill", "input_ids"),
)
# Attributes of objects that a model state has.
RUNNER_ATTRIBUTES = ("inputs_embeds", "encoder_cache", "is_realtime", "cudagraph_manager", "model")
STATE_ATTRIBUTES = ("mm_pruner", "prompt_embeds_state", "supports_mm_inputs")
ENCODER_ATTRIBUTES = ("encoder_runner", "encoder_cache")  # not in a later pipeline stage
MODEL_ATTRIBUTES = ("_has_oov_mm_tokens",)
LORA_ATTRIBUTES = ("enable_tower_connector_lora",)
# Qwen3-VL-MoE has `deepstack_input_embeds_num_tokens` only after its first rows, so the check asks for the
# method that reads it.
DEEPSTACK_ATTRIBUTES = ("deepstack_input_embeds", "_clear_deepstack_input_embeds")


def check_internals() -> None:
    """Check the functions and fields of vLLM that a placement calls and reads.

    Raises
    ------
    RuntimeError
        If one is missing, or has other parameters. The message names it, and the option that turns
        placements off.
    """
    for (module, name), expected in FUNCTIONS.items():
        function = _find(module, name)
        found = tuple(inspect.signature(function).parameters)
        if found != expected:
            _refuse(f"{module}.{name} has the parameters {found}, vitcache expects {expected}")
    present = {field.name for field in fields(_find(*BATCH))}
    missing = [name for name in BATCH_FIELDS if name not in present]
    if missing:
        _refuse(f"{'.'.join(BATCH)} lacks the fields {', '.join(missing)}")


def check_attributes(owner: Any, names: tuple[str, ...]) -> None:
    """Raise RuntimeError as `check_internals` if an object of vLLM lacks attributes."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        _refuse(f"{type(owner).__module__}.{type(owner).__name__} lacks the attributes {', '.join(missing)}")


def _find(module: str, name: str) -> Any:
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        _refuse(f"{module}.{name} is missing ({error})")
    return found


def _refuse(message: str) -> None:
    raise RuntimeError(
        f"{message}: vitcache cannot place rows in this vLLM. Set place_rows to false in "
        "ec_connector_extra_config, and vLLM's merge writes the rows"
    )
