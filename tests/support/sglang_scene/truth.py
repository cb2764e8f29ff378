"""The rows that a step must have, from whole prompts in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sglang_scene.language_model import HIDDEN, LanguageModel
from sglang_scene.prompts import Prompt, Window
from sglang_scene.tower import Tower


def prompt_rows(prompt: Prompt, model: LanguageModel, tower: Tower) -> Tensor:
    """The rows of a whole prompt ``(tokens, hidden * (1 + levels))``, deepstack columns last."""
    rows = torch.zeros(len(prompt), HIDDEN * (1 + tower.levels), dtype=torch.bfloat16)
    rows[:, :HIDDEN] = model.text_rows(prompt.ids)
    for item in prompt.items:
        if item.offsets is None:
            continue
        if item.precomputed_embeddings is None:
            is_bad = item.hash in tower.failing or item.hash in tower.short
            encoded = torch.zeros_like(tower.rows(item)) if is_bad else tower.rows(item)
        else:
            precomputed = torch.as_tensor(item.precomputed_embeddings)
            encoded = precomputed.reshape(-1, precomputed.shape[-1]).to(torch.bfloat16)
        first_row = 0
        for first, last in item.offsets:
            stop_row = first_row + last - first + 1
            rows[first : last + 1, HIDDEN:] = 0
            rows[first : last + 1, : encoded.shape[1]] = encoded[first_row:stop_row]
            first_row = stop_row
    return rows


def step_rows(windows: Sequence[Window], model: LanguageModel, tower: Tower, padding: int = 0) -> Tensor:
    """The rows of a step: those of its windows one after the other, and of padding with the token 0."""
    parts = [prompt_rows(prompt, model, tower)[start : start + length] for prompt, start, length in windows]
    return torch.cat([*parts, *([prompt_rows(Prompt(1), model, tower)] * padding)])
