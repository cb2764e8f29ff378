"""`build_prompt` and `compare_logits` of the demo."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from vitcache.demo import turns
from vitcache.demo.conversation import Picture, build_prompt

CONFIG = SimpleNamespace(vision_start_token_id=256, vision_end_token_id=257, image_token_id=258)


def test_build_prompt_adds_an_answer_before_each_turn_but_the_first() -> None:
    pictures = [Picture(None, torch.zeros(4, 2), torch.tensor([[1, 2, 2]]), rows) for rows in (1, 2, 3)]  # type: ignore[arg-type]
    prompts = [build_prompt(pictures[:count], CONFIG).input_ids[0].tolist() for count in (1, 2, 3)]
    opening = list(b"user: ")
    answers = []
    for earlier, later in pairwise(prompts):
        assert later[: len(earlier)] == earlier
        added = later[len(earlier) :]
        answers.append(added[: bytes(token for token in added if token < 256).index(bytes(opening))])
    assert prompts[0][: len(opening)] == opening
    assert answers[0] == answers[1] != []
    assert [prompt.count(258) for prompt in prompts] == [1, 3, 6]


def test_compare_logits_returns_the_largest_difference_of_all_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "_POSITIONS_PER_COMPARISON", 1)
    model = SimpleNamespace(lm_head=nn.Identity())
    hidden = torch.zeros(1, 3, 2)
    other = hidden.clone()
    other[0, 1, 0] = 2.0
    assert turns.compare_logits((model, hidden), (model, hidden)) == (True, 0.0)
    assert turns.compare_logits((model, hidden), (model, other)) == (False, 2.0)
