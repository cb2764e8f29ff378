"""`Side`: one of two equal models, and the prompts of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tiny_family import Call
from tiny_zoo import ZooModel
from tiny_zoo.zoo_model import num_rows
from torch import Tensor, nn
from torch.nn.functional import pad

from placed_modes.each_alone import cast, items_axis

TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Arguments of `forward` with one value per token."""

Item = tuple[str, int]
"""The modality and the seed of an item."""


@dataclass
class Side:
    """A model of one family, and prompts for it.

    `model` is the stock model or the attached one; `dtype` is that of its weights, of pixels and of samples.
    `plain` is a stock model that measures the items. `assistant` has other weights.
    """

    zoo: ZooModel
    model: Any
    plain: nn.Module
    assistant: nn.Module
    dtype: torch.dtype

    def ids(self, *items: Item) -> list[int]:
        """The tokens of a chat with these items."""
        ids = [1]
        for number, (modality, seed) in enumerate(items):
            medium, call = self.zoo.media[modality], self.zoo.media[modality].make(seed)
            with torch.no_grad():
                output = self.zoo.stock(self.plain, modality)(**cast(call, self.dtype))
            ids += [2 + number, *medium.run(call, num_rows(output)), 40, 41]
        return [*ids, 42]

    def prompt(self, *items: Item) -> Call:
        """The arguments of `forward` and `generate` for a chat with these items."""
        return self.batch([items])

    def main(self, *seeds: int) -> list[Item]:
        """The items of these seeds in the first modality of the family, which mostly is images."""
        return [(next(iter(self.zoo.media)), seed) for seed in seeds]

    def images(self, *seeds: int) -> Call:
        """The arguments for a chat with the `main` items of these seeds."""
        return self.prompt(*self.main(*seeds))

    def two_chats(self, side: str) -> Call:
        """The arguments for two chats with different numbers of items."""
        return self.batch([self.main(0), self.main(1, 2)], side)

    def batch(self, chats: Sequence[Sequence[Item]], side: str = "left") -> Call:
        """The arguments for several chats, padded left or right. Each has at least two padding tokens."""
        rows = [torch.tensor(self.ids(*chat)) for chat in chats]
        length = max(map(len, rows)) + 2 * (len(rows) > 1)
        edges = [(length - len(row), 0) if side == "left" else (0, length - len(row)) for row in rows]
        ids = torch.stack([pad(row, edge) for row, edge in zip(rows, edges, strict=True)])
        mask = torch.stack([pad(torch.ones_like(row), edge) for row, edge in zip(rows, edges, strict=True)])
        types = self.zoo.token_types(ids)
        types = {name: value.expand(len(rows), -1) for name, value in types.items()}
        return {"input_ids": ids, "attention_mask": mask} | types | self.media(chats)

    def media(self, chats: Sequence[Sequence[Item]]) -> Call:
        """The pixels and samples of these chats, as the processor joins them."""
        result: Call = {}
        for modality, medium in self.zoo.media.items():
            seeds = [[seed for kind, seed in chat if kind == modality] for chat in chats]
            calls = [medium.make(seed) for chat in seeds for seed in chat]
            if not calls:
                continue
            joined = medium.join(calls)
            if items_axis(medium) == 1:
                joined = {name: by_prompt(value, seeds) for name, value in joined.items()}
            result |= cast(joined, self.dtype) | medium.extras(calls)
        return result

    def logits(self, prompt: Call, **options: Any) -> Tensor:
        """The logits of one call."""
        logits: Tensor = self.zoo.logits(self.model, prompt | options)
        return logits

    def generate(self, prompt: Call, **options: Any) -> list[Tensor]:
        """The tokens and the logits of `generate`, from a seed."""
        torch.manual_seed(0)
        options = {
            **(self.zoo.options or {}),
            "return_dict_in_generate": True,
            "output_logits": True,
        } | options
        output = self.model.generate(**prompt, **options)
        return [output.sequences, *(output.logits or [])]  # a diffusion model returns tokens alone


Mode = Callable[[Side], list[Tensor]]
"""Calls the model of a side, and returns the tensors that must be equal."""


def by_prompt(items: Tensor, seeds: list[list[int]]) -> Tensor:
    """Divide `items` (1, items, ...) among the prompts, which are filled to the most items with zeros."""
    most = max(map(len, seeds))
    parts = items[0].split([len(chat) for chat in seeds])
    return torch.stack([pad(part, (0,) * (2 * part.dim() - 1) + (most - len(part),)) for part in parts])


def first_tokens(prompt: Call, count: int) -> Call:
    """The prompt without the tokens from `count` on."""
    return {name: value[:, :count] if name in TOKENS else value for name, value in prompt.items()}
