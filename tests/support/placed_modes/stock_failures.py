"""The modes in which the stock model itself fails, by family and version of transformers."""

from __future__ import annotations

from typing import NamedTuple

import torch

from placed_modes.calls import CALLS
from placed_modes.families import SPEECH
from placed_modes.generates import GENERATES
from placed_modes.versions import is_installed

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
STATEFUL = (
    *("qwen3_5", "qwen3_5_moe", "qwen4_exp", "glm5_next", "nemotron_h_omni"),
    *("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"),
)
GLM = ("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr")
OMNI = ("qwen2_5_omni", "qwen3_omni_moe")
REPEATED = ("beams", "beams of a batch", "two beams returned", "two samples returned")


class Failure(NamedTuple):
    """The stock models of these families raise `error` in these modes.

    They do so with weights of `dtypes`, in versions of transformers before `repaired`.
    """

    families: tuple[str, ...]
    modes: tuple[str, ...]
    error: type[Exception]
    repaired: str | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


FAILURES = (
    # A model with linear attention cannot drop the last tokens of its cache.
    Failure(STATEFUL, ("assisted", "prompt lookup"), ValueError),
    # Images and videos have one token id, and `forward` looks for both with it.
    Failure(GLM, ("images beside videos",), ValueError),
    Failure(("molmo2",), ("images beside videos",), ValueError),
    # The keys of the second chunk have a batch of 0.
    Failure((*QWEN, "glm4v"), ("prefill chunks",), RuntimeError, repaired="5.18"),
    # An attention mask has the length of the prompt, and the layer has a window of 8 tokens.
    Failure(("gemma3", "gemma4"), ("assisted",), RuntimeError, repaired="5.18"),
    # A router of experts multiplies float32 by its weights.
    Failure(("inkling2",), (*CALLS, *GENERATES), RuntimeError, dtypes=(torch.bfloat16,)),
    # The classes of the whole model, with a talker, have no forward, and their `generate` has fewer options.
    Failure(OMNI, ("loss",), TypeError),
    Failure(OMNI, ("two samples returned",), ValueError),
    Failure(("qwen2_5_omni",), ("assisted",), ValueError),
    # The assistant proposes an image token.
    Failure(("muse_glimmer",), ("assisted",), ValueError),
    # `generate` repeats the tokens of a prompt for each sequence, but not the features.
    Failure(("llama4", "fuyu"), REPEATED, ValueError),
    # `generate` cannot cut the features, or the samples, of one chunk.
    Failure(("granite4_vision", "gemma3n", "llama4", "fuyu"), ("prefill chunks",), KeyError),
    Failure(("ovis2",), ("prefill chunks",), TypeError),
    Failure(SPEECH, ("prefill chunks",), ValueError),
    # An encoder-decoder: its cache, labels and lengths are those of the decoder.
    Failure(("t5gemma2",), ("second turn",), AttributeError),
    Failure(("t5gemma2",), ("loss",), ValueError),
    Failure(("t5gemma2",), ("static cache",), KeyError),
    Failure(("t5gemma2",), ("prefill chunks",), RuntimeError),
    # Masks and positions have other lengths than the tokens.
    Failure(("inkling2",), ("static cache",), RuntimeError),
    Failure(("minicpmv4_7",), ("second turn",), RuntimeError),
)


def stock_failure(family: str, dtype: torch.dtype, mode: str) -> type[Exception] | None:
    """The exception that the stock model of the installed version raises in this mode."""
    for failure in FAILURES:
        is_named = family in failure.families and mode in failure.modes and dtype in failure.dtypes
        if is_named and is_installed(None, failure.repaired):
            return failure.error
    return None
