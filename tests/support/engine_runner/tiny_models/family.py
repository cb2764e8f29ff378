"""`Family`: one architecture of vLLM, and the parts of its small model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NUM_BYTES = 256
# The first special tokens of every tokenizer; the bytes come before them.
COMMON = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HIDDEN = 128
WEIGHT_DEVIATION = 0.08  # with the usual 0.02, the images would hardly change the tokens
MAX_PIXELS = 256 * 256


@dataclass(frozen=True)
class Family:
    """One architecture, and how its small model is made.

    `special` are the special tokens beside `COMMON`, and `roles` the names under which a processor asks the
    tokenizer for some of them. `config` returns the configuration of transformers, `processors` writes the
    JSON of the processors to a folder, and `weights` makes the model; without it, transformers has the class.
    `published` gives a weight the name and form of the published weights, where transformers has another.
    With `seed`, more than half of the chat's answers differ from each other.
    """

    name: str
    module: str  # of vllm.model_executor.models
    architecture: str
    placeholder: str  # the text of one image in a prompt
    special: tuple[str, ...]
    config: Callable[[Family], Any]
    processors: Callable[[Path], None]
    weights: Callable[[Any], Any] | None = None
    published: Callable[[str, Any], tuple[str, Any]] | None = None
    roles: dict[str, str] = field(default_factory=dict, hash=False)
    columns: int = HIDDEN  # of a row in the cache
    embedding_deviation: float = WEIGHT_DEVIATION
    options: dict[str, Any] = field(default_factory=dict, hash=False)  # of `LLM`
    seed: int = 0
    has_other_weights: bool = False

    def token(self, text: str) -> int:
        """The id of a special token."""
        return NUM_BYTES + (*COMMON, *self.special).index(text)

    def text_config(self, **own: Any) -> dict[str, Any]:
        """The configuration of the language model: two layers of 128 columns."""
        return {
            "hidden_size": HIDDEN,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": NUM_BYTES + len(COMMON) + len(self.special),
            "max_position_embeddings": 32768,
            "bos_token_id": self.token("<|endoftext|>"),
            "eos_token_id": self.token("<|im_end|>"),
            "pad_token_id": self.token("<|endoftext|>"),
            "tie_word_embeddings": False,
            **own,
        }


def published_siglip(name: str, weight: Any) -> tuple[str, Any]:
    """transformers has dropped a level of SigLIP's names, which vLLM and the published weights have."""
    return name.replace("vision_tower.", "vision_tower.vision_model."), weight
