"""A chat about photographs: every turn adds an image and a question, and repeats all earlier turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

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


Features = dict[str, Tensor]
"""The arguments of ``get_image_features`` by name; `pixel_values`, float32, is the first one."""

CountRuns = Callable[[Features], tuple[int, ...]]


@dataclass(frozen=True)
class Picture:
    """A photograph and the outputs of the image processor for it, in host memory.

    Attributes
    ----------
    photo, features
        The photograph, and the features of this image.
    runs
        The lengths of its runs of placeholder tokens, one token per row. Most models have one run per image.
    images_in
        The dimension of the features that counts images, or patches of images.
    """

    photo: Photo
    features: Features
    runs: tuple[int, ...]
    images_in: int = 0

    @property
    def num_rows(self) -> int:
        return sum(self.runs)

    @property
    def pixel_values(self) -> Tensor:
        return self.features["pixel_values"]


@dataclass(frozen=True)
class Prompt:
    """The inputs of a model in one turn, in host memory.

    `input_ids` is int64 and `token_types` int32 (1 at image tokens), both ``(1, T)``. `features` contains all
    `pictures`, as an image processor returns a batch.
    """

    input_ids: Tensor
    token_types: Tensor
    features: Features
    pictures: Sequence[Picture]

    @property
    def pixel_values(self) -> Tensor:
        return self.features["pixel_values"]

    @property
    def sizes(self) -> Features:
        """The features other than the pixels: grids, sizes, positions or masks."""
        return {name: value for name, value in self.features.items() if name != "pixel_values"}


def process(
    photo: Photo,
    processor: Any,
    count_runs: CountRuns,
    names: Sequence[str] = ("pixel_values", "image_grid_thw"),
    images_in: int = 0,
) -> Picture:
    """Run the image processor on one photograph; keep the outputs with these names."""
    outputs = processor(photo.pixels, input_data_format="channels_last", return_tensors="pt")
    features = {name: outputs[name] for name in names}
    return Picture(photo, features, count_runs(features), images_in)


def grid_runs(processor: Any) -> CountRuns:
    """Return a function that counts the rows of an image of patches, which the model merges in squares."""
    return lambda features: (int(features["image_grid_thw"].prod()) // processor.merge_size**2,)


def build_prompt(pictures: Sequence[Picture], config: Any) -> Prompt:
    """Return the prompt of the turn that adds the last of `pictures`; `config` has the special token ids."""
    ids: list[int] = []
    for turn, picture in enumerate(pictures):
        if turn > 0:
            ids += _encode(_ANSWER)
        ids += _encode("user: ")
        ids.append(config.vision_start_token_id)
        for number, run in enumerate(picture.runs):
            ids += _encode("\n" * (number > 0)) + [config.image_token_id] * run
        ids.append(config.vision_end_token_id)
        ids += _encode(_QUESTIONS[turn % len(_QUESTIONS)] + "\nassistant: ")
    return make_prompt(ids, pictures, config)


def make_prompt(ids: list[int], pictures: Sequence[Picture], config: Any) -> Prompt:
    """Return the prompt with token ids `ids`; its images are `pictures`, in this order."""
    input_ids = torch.tensor([ids])
    return Prompt(
        input_ids,
        token_types=(input_ids == config.image_token_id).int(),
        features={
            name: _join([picture.features[name] for picture in pictures], pictures[0].images_in)
            for name in pictures[0].features
        },
        pictures=pictures,
    )


def _join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return the parts in one tensor; smaller ones are padded at the ends of all dimensions but `dim`."""
    largest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [
            0 if axis == dim else most - size
            for axis, (most, size) in enumerate(zip(largest, part.shape, strict=True))
        ]
        padded.append(pad(part, [count for number in reversed(missing) for count in (0, number)]))
    return torch.cat(padded, dim)


def _encode(text: str) -> list[int]:
    """Return one token per byte: with random weights any tokenizer will do, and special ids are above 255."""
    return list(text.encode())
