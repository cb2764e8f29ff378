"""A chat in a process of its own, as far as vitcache can tell: a new model, cache and attachment."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitcache import DiskTier, EmbeddingCache, WriteBack, attach
from vitcache.adapters.vision_tower import row_width
from vitcache.demo.conversation import Picture, Prompt
from vitcache.demo.families import FAMILIES
from vitcache.demo.stock_side import prefill, text_inputs
from vitcache.demo.stopwatch import Stopwatch
from vitcache.demo.turns import build

DEVICE = torch.device("cpu")
FAMILY = FAMILIES["qwen3_vl"]
_FETCH_TIMEOUT_S = 10.0  # encodes are counted: they must not depend on other load of the machine


class Turn(NamedTuple):
    """The hidden states of a turn, the images that were encoded, and the milliseconds."""

    hidden: Tensor
    encoded: int
    ms: float


class Chat:
    """An attached model and its cache. `folder`: of the disk tier, or None for a cache without tiers."""

    def __init__(self, pictures: list[Picture], folder: Path | None, rule: WriteBack) -> None:
        self.model = build(FAMILY, DEVICE)
        size = 2 * sum(picture.num_rows + 16 for picture in pictures)
        size *= row_width(self.model.config) * self.model.dtype.itemsize
        self.cache = EmbeddingCache(
            row_width(self.model.config),
            dtype=self.model.dtype,
            device=DEVICE,
            device_bytes=size,
            host_bytes=size,
            tiers=[] if folder is None else [DiskTier(folder, "1GiB")],
            weights_name="tiny, seed 0",
            write_back=rule,
            fetch_timeout_s=_FETCH_TIMEOUT_S,
        )
        self._attachment = attach(self.model, self.cache)

    def answer(self, prompt: Prompt) -> Turn:
        """Run one turn."""
        before = self._attachment.stats().encoded
        with Stopwatch(DEVICE) as total:
            inputs = text_inputs(self.model, prompt)
            hidden = prefill(self.model, **inputs, pixel_values=prompt.pixel_values)
        return Turn(hidden, self._attachment.stats().encoded - before, total.ms)

    def end(self) -> None:
        """Write the entries that wait, and end."""
        self.cache.flush(60)
        self._attachment.detach()
        self.cache.close()


def talk(pictures: list[Picture], prompts: list[Prompt], folder: Path | None, rule: WriteBack) -> Chat:
    """Return a chat after the turns of these prompts."""
    chat = Chat(pictures, folder, rule)
    for prompt in prompts:
        chat.answer(prompt)
    return chat
