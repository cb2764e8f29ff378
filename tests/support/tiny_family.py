"""`TinyFamily`: a vision-language model with a few thousand random weights, and the arguments of its calls.

A picture is the output that the family's processor would return for one image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IMAGE, VIDEO, START, END = 90, 91, 92, 93
HIDDEN = 32
TEXT = {"vocab_size": 96, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
PADS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}

Call = dict[str, Any]


@dataclass(frozen=True)
class TinyFamily:
    """One model family.

    `picture(seed)` returns the arguments of `get_image_features` for one image. `join` makes one call of
    several pictures, as the processor does for a prompt with several images. `part` splits a call into its
    pictures.
    """

    name: str
    build: Callable[[], nn.Module]
    picture: Callable[[int], Call]
    join: Callable[[list[Call]], Call]
    part: Callable[[Call], list[Call]]
    tower: str
    row_width: int = HIDDEN
    token_types: Callable[[Tensor], Call] = field(default=lambda input_ids: {})

    def model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return randomize(self.build().to(dtype).eval())

    def pictures(self, *seeds: int) -> list[Call]:
        return [self.picture(seed) for seed in seeds]

    def call(self, *seeds: int) -> Call:
        """The arguments of `get_image_features` for these pictures."""
        return self.join(self.pictures(*seeds))

    def prompt(self, model: nn.Module, *seeds: int) -> Call:
        """The arguments of `forward` and `generate` for a chat with these pictures."""
        with torch.no_grad():
            outputs = [stock_method(model, "image")(**picture) for picture in self.pictures(*seeds)]
        return self.chat([_num_rows(output) for output in outputs], IMAGE) | self.call(*seeds)

    def chat(self, lengths: list[int], token: int) -> Call:
        """A chat with `lengths[i]` placeholder tokens for item i."""
        ids = [1]
        for i, length in enumerate(lengths):
            ids += [2 + i, START, *[token] * length, END, 40, 41]
        input_ids = torch.tensor([[*ids, 42]])
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            **self.token_types(input_ids),
        }


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Give a model larger random weights, and return it.

    With the small initial weights, images do not change the logits. Gemma 3's initial projector is 0.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.5 if "embed" in name else parameter.shape[-1] ** -0.5)
    return model


def stock_method(model: nn.Module, modality: str) -> Callable[..., Any]:
    """The method that the class defines, even if the object has an attribute of that name."""
    return getattr(type(model.base_model), f"get_{modality}_features").__get__(model.base_model)


def _num_rows(output: Any) -> int:
    return sum(len(item) for item in output.pooler_output)


def one_at_a_time(family: TinyFamily, model: nn.Module) -> nn.Module:
    """Make the stock model encode one image per call of its own method."""
    base = model.base_model
    stock = base.get_image_features
    names = list(family.picture(0))

    @functools.wraps(stock)
    def encode_each(*args: Any, **kwargs: Any) -> Any:
        call = dict(zip(names, args, strict=False)) | kwargs
        return joined_outputs([stock(**part) for part in family.part(call)])

    base.get_image_features = encode_each
    return model


def joined_outputs(outputs: list[Any]) -> Any:
    """One output for all items, in the container types of the outputs for one item."""
    first = outputs[0]
    first.pooler_output = _joined([output.pooler_output for output in outputs])
    if getattr(first, "deepstack_features", None) is not None:
        levels = zip(*(output.deepstack_features for output in outputs), strict=True)
        first.deepstack_features = [_joined(level) for level in levels]
    return first


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        # A stack with all rows at one index grows in its second dimension.
        return torch.cat(parts, int(len({part.shape[1:] for part in parts}) > 1))
    return type(parts[0])(item for part in parts for item in part)


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_of(seed: int, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    return shapes[seed % len(shapes)]


def cat(calls: list[Call]) -> Call:
    return {name: torch.cat([call[name] for call in calls]) for name in calls[0]}
