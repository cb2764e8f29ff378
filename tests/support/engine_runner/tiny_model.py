"""Makes a small model with random weights that vLLM can serve, without a download.

`python -m engine_runner.tiny_model FAMILY FOLDER` writes the model, its tokenizer and its processors to
FOLDER, and the same model with other weights to FOLDER-other. The tokenizer has one token per byte and eight
special tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
NUM_BYTES = 256
IDS = {token: NUM_BYTES + index for index, token in enumerate(SPECIAL)}
CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WEIGHT_DEVIATION = 0.08  # with the usual 0.02, the images would hardly change the tokens


def text_config(mrope_section: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": NUM_BYTES + len(SPECIAL),
        "max_position_embeddings": 32768,
        "bos_token_id": IDS["<|endoftext|>"],
        "eos_token_id": IDS["<|im_end|>"],
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": mrope_section},
    }


def make_config(family: str) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    ids = {
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"],
        "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"],
        "tie_word_embeddings": False,
    }
    vision: dict[str, Any] = {"depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4}
    vision["out_hidden_size"] = 128
    if family == "qwen3":
        vision |= {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 576, "patch_size": 16}
        return Qwen3VLConfig(text_config=text_config([6, 5, 5]), vision_config=vision, **ids)
    vision |= {"fullatt_block_indexes": [1, 3], "window_size": 112, "patch_size": 14}
    return Qwen2_5_VLConfig(text_config=text_config([4, 6, 6]), vision_config=vision, **ids)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", tokenizer_class="Qwen2TokenizerFast")


def write_processors(folder: Path, family: str) -> None:
    common: dict[str, Any] = {
        "patch_size": 16 if family == "qwen3" else 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor" if family == "qwen3" else "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": 64 * 64, "longest_edge": 512 * 512},
    }
    image = "Qwen2VLImageProcessorFast" if family == "qwen3" else "Qwen2VLImageProcessor"
    video = "Qwen3VLVideoProcessor" if family == "qwen3" else "Qwen2VLVideoProcessor"
    change_json(folder / "preprocessor_config.json", **common, image_processor_type=image)
    change_json(folder / "video_preprocessor_config.json", **common, video_processor_type=video)


def change_json(path: Path, **values: Any) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}, indent=1))


def make_model(family: str, folder: Path, seed: int) -> None:
    """Write a model. The folder appears when it is complete."""
    import torch
    from transformers import AutoModelForImageTextToText

    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_tokenizer(part)
    write_processors(part, family)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(make_config(family), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, WEIGHT_DEVIATION)
    model.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


if __name__ == "__main__":
    make_model(sys.argv[1], Path(sys.argv[2]), seed=0)
    make_model(sys.argv[1], Path(f"{sys.argv[2]}-other"), seed=1)
