"""Small models with random weights that vLLM can serve, made without a download: one per family.

`python -m engine_runner.tiny_models FAMILY FOLDER` writes a model, its tokenizer and its processors to
FOLDER.
"""

from engine_runner.tiny_models.family import Family
from engine_runner.tiny_models.gemma3 import GEMMA3
from engine_runner.tiny_models.glm4v import GLM4V
from engine_runner.tiny_models.internvl import INTERNVL
from engine_runner.tiny_models.internvl_chat import INTERNVL_CHAT
from engine_runner.tiny_models.llava_onevision import LLAVA_ONEVISION
from engine_runner.tiny_models.qwen import QWENS

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    family.name: family for family in (*QWENS, LLAVA_ONEVISION, INTERNVL_CHAT, INTERNVL, GEMMA3, GLM4V)
}
