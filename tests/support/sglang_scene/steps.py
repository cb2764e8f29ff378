"""One step through SGLang's `general_mm_embed_routine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sglang.srt.managers import mm_utils
from torch import Tensor

from sglang_scene.language_model import HIDDEN, VOCABULARY, LanguageModel
from sglang_scene.prompts import Window
from sglang_scene.tower import Tower
from vitcache.bench.sglang.turns import forward_batch


def make_batch(windows: Sequence[Window], padding: int = 0) -> tuple[Tensor, Any]:
    """Return the `input_ids` of a step and a stand-in of its `ForwardBatch`, whose static buffer is NaN."""
    parts = [prompt.ids[start : start + length] for prompt, start, length in windows]
    ids = torch.cat([*parts, torch.zeros(padding, dtype=torch.int64)])
    batch = forward_batch(
        [window.prompt.inputs for window in windows],
        [window.start for window in windows],
        [window.length for window in windows],
        torch.full((len(ids), HIDDEN), float("nan"), dtype=torch.bfloat16),
    )
    return ids, batch


def run_step(
    windows: Sequence[Window],
    model: LanguageModel,
    tower: Tower,
    padding: int = 0,
    functions: Mapping[Any, Any] | None = None,
) -> Tensor:
    """Run a step. Return the rows that the language model got, with its deepstack columns behind them."""
    ids, batch = make_batch(windows, padding)
    has_items = batch.contains_mm_inputs()
    if not has_items:
        ids.clamp_(0, VOCABULARY - 1)
    mm_utils.general_mm_embed_routine(
        ids, batch, model, tower, functions, use_deepstack=tower.use_deepstack if has_items else {}
    )
    assert model.embeds is batch.input_embeds
    deepstack = model.arguments.get("input_deepstack_embeds")
    if deepstack is None:
        deepstack = model.embeds.new_zeros(len(ids), HIDDEN * tower.levels)
    return torch.cat([model.embeds, deepstack], dim=1)
