"""Writes the folder of a model: weights, configuration, tokenizer and processors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine_runner.tiny_models.family import COMMON, WEIGHT_DEVIATION, Family

CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'text' %}{{ part.text }}{% else %}PLACEHOLDER{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_model(family: Family, folder: Path, seed: int) -> None:
    """Write a model. The folder appears when it is complete."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_tokenizer(family, part)
    write_weights(family, part, seed)
    family.processors(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def write_weights(family: Family, folder: Path, seed: int) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    make = family.weights
    if make is None:
        make = AutoModelForImageTextToText.from_config
    model = make(family.config(family)).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                is_embedding = name.endswith("embed_tokens.weight")
                parameter.normal_(0, family.embedding_deviation if is_embedding else WEIGHT_DEVIATION)
    model.save_pretrained(folder)
    if family.published is not None:
        publish(folder / "model.safetensors", family.published)


def publish(path: Path, change: Callable[[str, Any], tuple[str, Any]]) -> None:
    """Change names and weights of a file."""
    from safetensors.torch import load_file, save_file

    weights = dict(change(name, weight) for name, weight in load_file(path).items())
    save_file(weights, path, metadata={"format": "pt"})


def write_tokenizer(family: Family, folder: Path) -> None:
    """A tokenizer with one token per byte, and the special tokens of the family."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [*COMMON, *family.special]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=special,
        chat_template=CHAT_TEMPLATE.replace("PLACEHOLDER", family.placeholder),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", tokenizer_class="Qwen2TokenizerFast", **family.roles)


def change_json(path: Path, **values: Any) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}, indent=1))
