"""A chat about photographs: every turn adds an image and a question, and repeats all earlier turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcache.demo.photos import Photo

_QUESTIONS = (
    "What is in this picture?",
    "And in this one?",
    "How does this one differ from the first?",
    "Which colours stand out here?",
    "Where might this have been taken?",
    "Which of the pictures so far would you hang on a wall?",
)
# A model with random weights gives no useful answer, so later turns repeat this one.
_ANSWER = "A fine picture.\n"


@dataclass(frozen=True)
class Picture:
    """A photograph and the outputs of the image processor for it, in host memory.

    `pixel_values` is float32 ``(patches, patch elements)``, `grid_thw` int64 ``(1, 3)``.
    """

    photo: Photo
    pixel_values: Tensor
    grid_thw: Tensor
    num_rows: int


@dataclass(frozen=True)
class Prompt:
    """The inputs of a model in one turn, in host memory.

    `input_ids` is int64 and `token_types` int32 (1 at image tokens), both ``(1, T)``. `pixel_values` and
    `grid_thw` contain all `pictures` end to end, as an image processor returns a batch.
    """

    input_ids: Tensor
    token_types: Tensor
    pixel_values: Tensor
    grid_thw: Tensor
    pictures: Sequence[Picture]


def process(photo: Photo, processor: Any) -> Picture:
    """Run the image processor on one photograph."""
    features = processor(photo.pixels, input_data_format="channels_last", return_tensors="pt")
    grid_thw = features["image_grid_thw"]
    return Picture(photo, features["pixel_values"], grid_thw, int(grid_thw.prod()) // processor.merge_size**2)


def build_prompt(pictures: Sequence[Picture], config: Any) -> Prompt:
    """Return the prompt of the turn that adds the last of `pictures`; `config` has the special token ids."""
    ids: list[int] = []
    for turn, picture in enumerate(pictures):
        if turn > 0:
            ids += _encode(_ANSWER)
        ids += _encode("user: ")
        ids += [
            config.vision_start_token_id,
            *[config.image_token_id] * picture.num_rows,
            config.vision_end_token_id,
        ]
        ids += _encode(_QUESTIONS[turn % len(_QUESTIONS)] + "\nassistant: ")
    return make_prompt(ids, pictures, config)


def make_prompt(ids: list[int], pictures: Sequence[Picture], config: Any) -> Prompt:
    """Return the prompt with token ids `ids`; its images are `pictures`, in this order."""
    input_ids = torch.tensor([ids])
    return Prompt(
        input_ids,
        token_types=(input_ids == config.image_token_id).int(),
        pixel_values=torch.cat([picture.pixel_values for picture in pictures]),
        grid_thw=torch.cat([picture.grid_thw for picture in pictures]),
        pictures=pictures,
    )


def _encode(text: str) -> list[int]:
    """Return one token per byte: with random weights any tokenizer will do, and special ids are above 255."""
    return list(text.encode())
