"""`REFUSED_MODELS`: models that `attach` refuses by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tiny_zoo.builder import builder
from tiny_zoo.squares import SIGLIP

# The codes of a VQ-VAE as tokens of the text.
_CODES = {"<image>": 90, "IMGIMGAZ": 5, "<|visual token 000001|>": 5}
_VQ = {"base_channels": 32, "channel_multiplier": [1, 1]}

REFUSED_MODELS: dict[str, Callable[[], nn.Module]] = {
    "chameleon": builder("Chameleon", vocabulary_map=_CODES, vq_config=_VQ),
    "emu3": builder("Emu3", vocabulary_map=_CODES, vq_config=_VQ),
    "blip-2": builder("Blip2", vision_config=SIGLIP),
    "instructblip": builder("InstructBlip", vision_config=SIGLIP),
    "instructblipvideo": builder("InstructBlipVideo", vision_config=SIGLIP),
    "inkling_mm_model": builder("Inkling"),
}
"""Functions that make the models, by model type."""
