"""The architectures of vLLM whose rows vitcache places, and their registration.

Only architectures are listed for which a test compares the tokens with those of vLLM (tests/engines).
"""

from __future__ import annotations

MODELS = "vllm.model_executor.models"
PLACED_MODELS = "vitcache.adapters.vllm.placed_models"
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


def register_models() -> None:
    """Register the classes with vLLM in place of its own. A class of another plug-in stays."""
    from vllm import ModelRegistry

    for name, (module, of_vllm) in ARCHITECTURES.items():
        present = ModelRegistry.models.get(name)
        place = (getattr(present, "module_name", None), getattr(present, "class_name", None))
        if place == (f"{MODELS}.{module}", of_vllm):
            ModelRegistry.register_model(name, f"{PLACED_MODELS}:{name}")
