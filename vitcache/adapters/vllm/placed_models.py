"""The architectures of vLLM whose rows vitcache places, as classes for vLLM's `ModelRegistry`.

Each class is a subclass of vLLM's own, with its name. It is made when vLLM asks for it, so that a process
loads no other model. Only architectures are listed for which a test compares the tokens with those of vLLM
(tests/engines).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

MODELS = "vllm.model_executor.models"
# Name in vLLM's registry: vLLM's module and class.
ARCHITECTURES = {
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
    "LlavaOnevisionForConditionalGeneration": ("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
    "InternVLChatModel": ("internvl", "InternVLChatModel"),
    "InternVLForConditionalGeneration": ("interns1", "InternS1ForConditionalGeneration"),
    "Gemma3ForConditionalGeneration": ("gemma3_mm", "Gemma3ForConditionalGeneration"),
    "Glm4vForConditionalGeneration": ("glm4_1v", "Glm4vForConditionalGeneration"),
}


class PlacesRows:
    """Makes vLLM use `VitCacheModelState` for a model, if the worker's connector is vitcache's.

    Otherwise the property `get_model_state_cls` does not exist, and vLLM chooses its own model state.
    """

    @property
    def get_model_state_cls(self) -> Any:
        """A function that returns the class of the model state."""
        from vitcache.adapters.vllm.connector import VitCacheConnector

        connector = VitCacheConnector.of_worker()
        if connector is None or not connector.may_place(self):
            raise AttributeError("get_model_state_cls")  # vLLM asks `hasattr`
        from vitcache.adapters.vllm.model_state import VitCacheModelState

        return lambda: VitCacheModelState


def register_models() -> None:
    """Register the classes with vLLM in place of its own. A class of another plug-in stays."""
    from vllm import ModelRegistry

    for name, (module, of_vllm) in ARCHITECTURES.items():
        present = ModelRegistry.models.get(name)
        place = (getattr(present, "module_name", None), getattr(present, "class_name", None))
        if place == (f"{MODELS}.{module}", of_vllm):
            ModelRegistry.register_model(name, f"{__name__}:{name}")


def __getattr__(name: str) -> Any:
    if name not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, of_vllm = ARCHITECTURES[name]
    stock = getattr(import_module(f"{MODELS}.{module}"), of_vllm)
    placed = type(of_vllm, (PlacesRows, stock), {"__module__": __name__, "__doc__": stock.__doc__})
    globals()[name] = placed
    return placed
