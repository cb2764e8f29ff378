"""Makes a Qwen3-VL that vLLM can serve, without a download.

`python -m vitcache.bench.engines.model_folder SIZE FOLDER` writes the configuration of a size of the demo,
its tokenizer and its processors. The size `tiny` has random weights; for larger sizes, vLLM makes weights of
its own. The tokenizer has a token for each byte and for each special token.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

WITH_WEIGHTS = "tiny"
SPECIAL = (
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),  # in the order of the demo's
    *("<|endoftext|>", "<|im_end|>"),
)
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
WEIGHT_DEVIATION = 0.08  # with the usual 0.02, the images would hardly change the tokens
PATCH = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
ROW_PIXELS = (PATCH["patch_size"] * PATCH["merge_size"]) ** 2  # of the image, for one row


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer without merges."""
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
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(folder)
    add_to_json(folder / "tokenizer_config.json", tokenizer_class="Qwen2TokenizerFast")


def write_processors(folder: Path) -> None:
    """Write the settings of the processors of images and videos."""
    common: dict[str, Any] = {
        **PATCH,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": ROW_PIXELS, "longest_edge": 1024 * ROW_PIXELS},
    }
    add_to_json(
        folder / "preprocessor_config.json", **common, image_processor_type="Qwen2VLImageProcessorFast"
    )
    add_to_json(
        folder / "video_preprocessor_config.json", **common, video_processor_type="Qwen3VLVideoProcessor"
    )


def add_to_json(path: Path, **values: Any) -> None:
    """Add values to the object in a file, which may not exist yet."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}, indent=1))


def make_model(size: str, folder: Path) -> None:
    """Write the model. The folder appears when it is complete."""
    from vitcache.demo.model import AFTER_BYTES, SIZES

    with complete(folder) as part:
        write_tokenizer(part)
        write_processors(part)
        if size == WITH_WEIGHTS:
            write_weights(SIZES[size], WEIGHT_DEVIATION, part)
        else:
            write_config(replace(SIZES[size], special_tokens=AFTER_BYTES), part)


@contextmanager
def complete(folder: Path) -> Iterator[Path]:
    """Make a new folder beside `folder` for its files, and put it in the place of `folder` at the end."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def write_weights(size: Any, deviation: float, folder: Path) -> None:
    """Write random weights of a `Size` of the demo. `deviation`: large enough for images to change tokens."""
    import torch

    from vitcache.demo.model import build_model

    model = build_model(size, torch.device("cpu")).bfloat16()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, deviation)
    model.save_pretrained(folder)


def write_config(size: Any, folder: Path) -> None:
    """Write only the configuration of a `Size`, which has the special tokens of the tokenizer."""
    from vitcache.demo.model import make_config

    config = make_config(size)
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(folder)


if __name__ == "__main__":
    make_model(sys.argv[1], Path(sys.argv[2]))
