"""Shapes of well-known checkpoints, so that their rows can be counted without a download.

Each entry has the fields of the checkpoint's ``config.json`` and ``preprocessor_config.json`` that decide how
many rows an image has, and how wide a row is. All other fields are the defaults of transformers. The numbers
are those of the files at https://huggingface.co under the name of the checkpoint, as of November 2026.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"


class KnownModel(NamedTuple):
    """A checkpoint's name at Hugging Face, and the fields of its two files that decide the rows."""

    checkpoint: str
    config: dict[str, Any]
    processor: dict[str, Any]


def _qwen3_vl(checkpoint: str, hidden: int) -> KnownModel:
    tower = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "out_hidden_size": hidden,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    config = {"model_type": "qwen3_vl", "text_config": {"hidden_size": hidden}, "vision_config": tower}
    size = {"longest_edge": 16_777_216, "shortest_edge": 65_536}
    return KnownModel(checkpoint, config, {**_QWEN, "size": size, "patch_size": 16, "merge_size": 2})


def _qwen2_5_vl(checkpoint: str, hidden: int) -> KnownModel:
    config = {
        "model_type": "qwen2_5_vl",
        "text_config": {"hidden_size": hidden},
        "vision_config": {"out_hidden_size": hidden, "patch_size": 14, "spatial_merge_size": 2},
    }
    processor = {"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "merge_size": 2}
    return KnownModel(checkpoint, config, _QWEN | processor)


def _gemma3(checkpoint: str, hidden: int) -> KnownModel:
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "image_size": 896,
        "patch_size": 14,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
    }
    config = {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "text_config": {"model_type": "gemma3_text", "hidden_size": hidden},
        "vision_config": tower,
    }
    processor = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 896, "width": 896}}
    return KnownModel(checkpoint, config, processor)


_QWEN = {"image_processor_type": "Qwen2VLImageProcessor", "temporal_patch_size": 2}

KNOWN_MODELS = {
    "Qwen3-VL-8B": _qwen3_vl("Qwen/Qwen3-VL-8B-Instruct", 4096),
    "Qwen3-VL-32B": _qwen3_vl("Qwen/Qwen3-VL-32B-Instruct", 5120),
    "Qwen2.5-VL-7B": _qwen2_5_vl("Qwen/Qwen2.5-VL-7B-Instruct", 3584),
    "Gemma-3-12B": _gemma3("google/gemma-3-12b-it", 3840),
    "InternVL3-8B": KnownModel(
        "OpenGVLab/InternVL3-8B-hf",
        {
            "model_type": "internvl",
            "text_config": {"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28},
            "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]},
            "downsample_ratio": 0.5,
        },
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 448, "width": 448},
            "min_patches": 1,
            "max_patches": 12,
        },
    ),
    "LLaVA-OneVision-7B": KnownModel(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        {
            "model_type": "llava_onevision",
            "vision_aspect_ratio": "anyres_max_9",
            "text_config": {"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "image_size": 384,
                "patch_size": 14,
                "num_attention_heads": 16,
                "num_hidden_layers": 26,
                "vision_use_head": False,
            },
        },
        {"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 384, "width": 384}},
    ),
    "GLM-4.1V-9B": KnownModel(
        "zai-org/GLM-4.1V-9B-Thinking",
        {
            "model_type": "glm4v",
            "text_config": {"hidden_size": 4096},
            "vision_config": {"out_hidden_size": 4096, "patch_size": 14, "spatial_merge_size": 2},
        },
        {
            "image_processor_type": "Glm4vImageProcessor",
            "size": {"shortest_edge": 12_544, "longest_edge": 9_633_792},
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
    ),
    "Mistral-Small-3.1": KnownModel(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        {
            "model_type": "mistral3",
            "spatial_merge_size": 2,
            "text_config": {"model_type": "mistral", "hidden_size": 5120},
            "vision_config": {"model_type": "pixtral", "image_size": 1540, "patch_size": 14},
        },
        {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 1540}, "patch_size": 14},
    ),
}


def find_known(name: str) -> KnownModel | None:
    """Return the known model with this name, or with this name of its checkpoint, else None."""
    by_checkpoint = {model.checkpoint: model for model in KNOWN_MODELS.values()}
    return KNOWN_MODELS.get(name) or by_checkpoint.get(name)


@contextmanager
def model_path(name: str) -> Iterator[str]:
    """Within the ``with`` block, return a folder with the two files of a known model; else `name` itself."""
    model = find_known(name)
    if model is None:
        yield name
        return
    with TemporaryDirectory(prefix="vitcache-") as folder:
        for file, fields in ((CONFIG_FILE, model.config), (PROCESSOR_FILE, model.processor)):
            (Path(folder) / file).write_text(json.dumps(fields))
        yield folder
