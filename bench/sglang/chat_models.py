"""Makes the models of the bench `sglang_chat`, without a download.

`python -m vitcache.bench.sglang.chat_models NAME FOLDER` writes a Qwen3-VL that SGLang can serve:

- `tiny` has random weights. Its rows have 40 bfloat16 columns and three deepstack levels, so 1 MiB contains
  3,276 of them. SGLang's cache of 100 MiB contains 3,200 rows of Qwen3-VL-8B, whose hidden size is 4096.
- `8b` has the shape of Qwen3-VL-8B. Only its configuration is written: SGLang makes the weights.
- `reader` is the model of the bench `accuracy`, which has learned to read digits. It is trained here. With
  `reader-untrained`, the training ends after one step.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcache.bench.chats.lessons import CARDS_PER_STEP, DECKS, LESSONS
from vitcache.bench.engines.model_folder import (
    add_to_json,
    complete,
    write_config,
    write_tokenizer,
    write_weights,
)

WEIGHT_DEVIATION = 0.15  # with the usual 0.02, the images would hardly change the logits


def tiny_size() -> Any:
    """The shape of the model `tiny`."""
    import torch

    from vitcache.demo.model import AFTER_BYTES, Size

    return Size(
        text={
            "hidden_size": 40,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "vocab_size": 272,
            "max_position_embeddings": 65536,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5]},
        },
        vision={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 1,
            "out_hidden_size": 40,
            "deepstack_visual_indexes": [0, 1, 2],
            "num_position_embeddings": 576,
        },
        special_tokens=AFTER_BYTES,
        dtype=torch.bfloat16,
        min_pixels=32 * 32,
        max_pixels=4096 * 4096,
    )


def size_of(name: str) -> Any:
    """The shape of a model. Its special tokens are those of the tokenizer that this module writes."""
    from vitcache.bench.chats.reader import SIZE
    from vitcache.demo.model import AFTER_BYTES, SIZES

    if name == "tiny":
        return tiny_size()
    if name == "8b":
        pixels = tiny_size()
        return replace(
            SIZES["8b"],
            special_tokens=AFTER_BYTES,
            min_pixels=pixels.min_pixels,
            max_pixels=pixels.max_pixels,
        )
    return SIZE


def make_model(name: str, folder: Path) -> None:
    """Write the model. The folder appears when it is complete."""
    from vitcache.demo.model import processor_settings

    size = size_of(name)
    with complete(folder) as part:
        if name == "8b":
            write_config(size, part)
        elif name == "tiny":
            write_weights(size, WEIGHT_DEVIATION, part)
        else:
            trained(LESSONS if name == "reader" else ((1, 1),)).save_pretrained(part)
        interleave_positions(part / "config.json")
        write_tokenizer(part)
        for file, processor in (
            ("preprocessor_config", {"image_processor_type": "Qwen2VLImageProcessorFast"}),
            ("video_preprocessor_config", {"video_processor_type": "Qwen3VLVideoProcessor"}),
        ):
            settings = processor_settings(size)
            add_to_json(part / f"{file}.json", **settings, **processor, processor_class="Qwen3VLProcessor")


def interleave_positions(config: Path) -> None:
    """Write the option of Qwen3-VL's checkpoints that transformers does not need, and SGLang does."""
    known = json.loads(config.read_text())
    known["text_config"]["rope_parameters"]["mrope_interleaved"] = True
    config.write_text(json.dumps(known, indent=1))


def trained(lessons: tuple[tuple[int, int], ...]) -> Any:
    """Return the reader after these lessons."""
    import torch

    from vitcache.bench.chats.digits import load_cards
    from vitcache.bench.chats.reader import SIZE, build_reader, teach
    from vitcache.demo.model import build_processor

    torch.manual_seed(0)
    cards, _ = load_cards(build_processor(SIZE), DECKS if lessons == LESSONS else 1)
    model = build_reader()
    for _ in teach(model, cards, lessons, CARDS_PER_STEP):
        pass
    return model


if __name__ == "__main__":
    make_model(sys.argv[1], Path(sys.argv[2]))
