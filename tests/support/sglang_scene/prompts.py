"""Items and prompts of SGLang, made of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
from torch import Tensor

FEATURE_WIDTH = 8
TEXT_IDS = 300

Offsets = Sequence[tuple[int, int]]


def pixels(seed: int, num_rows: int) -> Tensor:
    """The feature of an item: one patch for each row."""
    return torch.randn(num_rows, FEATURE_WIDTH, generator=torch.Generator().manual_seed(seed))


def make_item(
    seed: int, *offsets: tuple[int, int], modality: Modality = Modality.IMAGE, **data: Any
) -> MultimodalDataItem:
    """Return an item whose tokens are the inclusive pairs of `offsets`, with the hash that SGLang computes.

    `data` is the data of the model, such as the grid.
    """
    feature = pixels(seed, sum(last - first + 1 for first, last in offsets))
    item = MultimodalDataItem(
        modality=modality, offsets=list(offsets), feature=feature, model_specific_data=data
    )
    item.set_pad_value()
    return item


class Prompt:
    """The tokens of a request, and its items. `inputs` is None for a request of text alone."""

    def __init__(self, num_tokens: int, items: Sequence[MultimodalDataItem] = ()) -> None:
        self.items = list(items)
        self.inputs = MultimodalInputs(mm_items=list(items)) if items else None
        self.ids = torch.arange(num_tokens) % TEXT_IDS
        for item in items:
            for first, last in item.offsets or ():
                self.ids[first : last + 1] = torch.tensor(item.padding_sequence(last - first + 1))

    def __len__(self) -> int:
        return len(self.ids)

    def window(self, start: int = 0, stop: int | None = None) -> Window:
        """The tokens ``[start, stop)`` of the prompt in one step."""
        return Window(self, start, (len(self) if stop is None else stop) - start)

    def chunks(self, *lengths: int) -> list[list[Window]]:
        """Steps of this prompt alone: one chunk each, of these lengths."""
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        return [[self.window(start, start + length)] for start, length in zip(starts, lengths, strict=True)]


class Window(NamedTuple):
    """A request in one step."""

    prompt: Prompt
    start: int
    length: int


def images(num_images: int, rows: int = 10, gap: int = 10, first: int = 5) -> Prompt:
    """A prompt of images of equal size, with text between them. Image `k` has the seed `k`."""
    stride = rows + gap
    items = [make_item(k, (first + stride * k, first + stride * k + rows - 1)) for k in range(num_images)]
    return Prompt(first + stride * num_images, items)
