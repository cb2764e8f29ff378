"""Attached models of which every call is a hit, and the counts that a call adds to placed calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attached import logits, pair
from tiny_models import FAMILIES, Call
from torch import Tensor, nn

from vitcache.adapters.transformers import Attachment

each_kind = pytest.mark.parametrize("name", ["gemma3", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
"""Families whose stock methods return a tensor, a list and a tuple, and one with deepstack levels."""


def ready(name: str, **options: Any) -> tuple[nn.Module, nn.Module, Attachment, Call]:
    """A stock model, an attached model that has encoded two images, and a prompt with them."""
    stock, model, attachment, _ = pair(FAMILIES[name], **options)
    prompt = FAMILIES[name].prompt(stock, 0, 1)
    logits(model, prompt)
    return stock, model, attachment, prompt


def placed(attachment: Attachment, call: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """Run the call; return the number of placed calls, and the number of unplaced calls by reason."""
    before = attachment.stats()
    call()
    after = attachment.stats()
    unplaced = {name: n - before.unplaced_calls.get(name, 0) for name, n in after.unplaced_calls.items()}
    return after.placed_calls - before.placed_calls, {name: n for name, n in unplaced.items() if n}


def is_plain(features: Any) -> bool:
    return all(type(part) is Tensor for part in ([features] if isinstance(features, Tensor) else features))
