"""Conversations over a tiny model with images and videos, and their comparison with the stock forward."""

from __future__ import annotations

from typing import Any

import torch
from attached import Tower
from caches import make_cache
from tiny_family import Call
from tiny_grids import GRID_FAMILIES, GridFamily
from torch import Tensor

from vitcache import Item
from vitcache.adapters.transformers import ChunkedPrefill, image_items, video_items, vision_pipeline

MEDIA = [("image", 0), ("video", 1), ("video", 0), ("image", 2), ("video", 2)]


class Scene:
    """A model and a pipeline. `chat` makes one more conversation."""

    def __init__(self, name: str, **options: Any) -> None:
        self.family: GridFamily = GRID_FAMILIES[name]
        self.model: Any = self.family.model()
        self.tower = Tower(self.family, self.model)
        cache = make_cache(800, width=self.family.row_width)
        self.pipeline = vision_pipeline(self.model, cache, max_rows_per_encode=8, **options)

    def chat(self, chunk_tokens: int = 8, **options: Any) -> ChunkedPrefill:
        return ChunkedPrefill(self.model, self.pipeline, chunk_tokens, **options)

    def items(self, prompt: Call) -> list[Item]:
        """The items of a prompt, images first."""
        items: list[Item] = []
        if "pixel_values" in prompt:
            pixels = prompt["pixel_values"], prompt["image_grid_thw"]
            items += image_items(self.model, prompt["input_ids"], *pixels)
        if "pixel_values_videos" in prompt:
            pixels = prompt["pixel_values_videos"], prompt["video_grid_thw"]
            seconds = prompt.get("second_per_grid_ts")
            items += video_items(self.model, prompt["input_ids"], *pixels, second_per_grid_ts=seconds)
        return items

    def prompt(self, *media: tuple[str, int]) -> tuple[Call, list[Item]]:
        prompt = self.family.mixed_prompt(*media)
        return prompt, self.items(prompt)

    def longer(self, prompt: Call, *ids: int) -> Call:
        """The prompt with more text tokens at its end."""
        more = torch.tensor([ids])
        longer = {**prompt, "input_ids": torch.cat([prompt["input_ids"], more], dim=1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        types = prompt["mm_token_type_ids"]
        longer["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(more, dtype=types.dtype)], dim=1)
        return longer

    def stock_logits(self, prompt: Call) -> Tensor:
        """The logits of all tokens, by the stock forward. Its calls of the vision tower are not counted."""
        logits = self.family.stock_logits(self.model, prompt)
        self.tower.take()
        return logits

    def assert_prefills(self, chat: ChunkedPrefill, prompt: Call, items: list[Item], *, reused: int) -> None:
        """Prefill, and compare the logits of the tokens that were run with the stock forward's."""
        hidden = torch.cat(list(chat.chunks(prompt["input_ids"], items)), dim=1)
        with torch.no_grad():
            got = self.model.lm_head(hidden)
        num_tokens = prompt["input_ids"].shape[1]
        assert got.shape[1] == num_tokens - reused
        assert_close(got, self.stock_logits(prompt)[:, reused:])
        assert chat.num_cached == chat.kv.get_seq_length() == num_tokens


def assert_close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
