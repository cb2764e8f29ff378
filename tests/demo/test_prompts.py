"""`build_prompt` and `compare_logits` of the demo."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from vitcache.demo import logits
from vitcache.demo.conversation import Picture, build_prompt

CONFIG = SimpleNamespace(vision_start_token_id=256, vision_end_token_id=257, image_token_id=258)


def picture(pixels: torch.Tensor, *runs: int, images_in: int = 0) -> Picture:
    return Picture(None, {"pixel_values": pixels}, runs, images_in)  # type: ignore[arg-type]


def test_build_prompt_adds_an_answer_before_each_turn_but_the_first() -> None:
    pictures = [picture(torch.zeros(4, 2), rows) for rows in (1, 2, 3)]
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


def test_build_prompt_puts_a_line_end_between_the_runs_of_an_image() -> None:
    ids = build_prompt([picture(torch.zeros(1, 2), 2, 2)], CONFIG).input_ids[0].tolist()
    start = ids.index(256)
    assert ids[start : ids.index(257) + 1] == [256, 258, 258, ord("\n"), 258, 258, 257]


def test_build_prompt_joins_images_and_pads_them_to_the_largest() -> None:
    small, wide = torch.full((1, 2, 3), 1.0), torch.full((1, 2, 5), 2.0)
    pixels = build_prompt([picture(small, 1), picture(wide, 1)], CONFIG).pixel_values
    assert torch.equal(pixels, torch.stack([torch.tensor([[1.0, 1, 1, 0, 0]] * 2), wide[0]]))


def test_build_prompt_joins_images_in_their_dimension() -> None:
    parts = [torch.full((1, 1, 2), float(value)) for value in (1, 2)]
    pixels = build_prompt([picture(part, 1, images_in=1) for part in parts], CONFIG).pixel_values
    assert torch.equal(pixels, torch.cat(parts, 1))


def test_compare_logits_returns_the_largest_difference_of_all_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logits, "_POSITIONS_PER_COMPARISON", 1)
    model = SimpleNamespace(lm_head=nn.Identity())
    hidden = torch.zeros(1, 3, 2)
    other = hidden.clone()
    other[0, 1, 0] = 2.0
    assert logits.compare_logits((model, hidden), (model, hidden)) == (True, 0.0)
    assert logits.compare_logits((model, hidden), (model, other)) == (False, 2.0)
