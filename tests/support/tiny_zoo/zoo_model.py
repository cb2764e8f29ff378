"""`ZooModel`: a tiny model of one family, its images, videos and audio clips, and prompts with them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from tiny_family import END, HIDDEN, IMAGE, START, Call, cat, joined_outputs, random_tensor, randomize
from torch import Tensor, nn

_MISSING = re.compile(r"(?:module transformers has no attribute|cannot import name) '?(\w+)")
_OTHER_PIXELS = 9999
"""Seeds from here on are those of no item of a test."""


APART = (3,), (3, 4)
"""Prompts with items of another shape than seeds 0, 1 and 2."""


@dataclass(frozen=True)
class Medium:
    """The items of one modality.

    Attributes
    ----------
    make
        `make(seed)` returns the arguments of the stock method for one item, as the processor would. The first
        is the pixels or the sound. Seeds 0, 1 and 2 give items of different shapes, where the model has any.
    join
        Makes one call of the calls of several items, as the processor does for a prompt with several items.
    token
        The id of the placeholder tokens.
    tokens
        `tokens(length)` returns the tokens of one item with `length` rows. None: START, placeholders, END.
    layout
        `layout(call, length)` does so if the tokens also depend on the item's arguments.
    joined
        Makes one output of the stock outputs for one item each.
    apart
        Further prompts. Their items have another shape than seeds 0, 1 and 2, because all items of a call
        must have one shape.
    extras
        `extras(calls)` returns arguments of `forward` about these items that the stock method does not get.
    """

    make: Callable[[int], Call]
    join: Callable[[list[Call]], Call] = cat
    token: int = IMAGE
    tokens: Callable[[int], list[int]] | None = None
    layout: Callable[[Call, int], list[int]] | None = None
    joined: Callable[[list[Any]], Any] = joined_outputs
    apart: tuple[tuple[int, ...], ...] = ()
    extras: Callable[[list[Call]], Call] = field(default=lambda calls: {})

    def run(self, call: Call, length: int) -> list[int]:
        """The tokens of the item with these arguments and `length` rows."""
        if self.layout:
            return self.layout(call, length)
        return self.tokens(length) if self.tokens else [START, *[self.token] * length, END]


@dataclass(frozen=True)
class ZooModel:
    """A model of one family.

    Attributes
    ----------
    name
        A name for the test, such as the model type.
    build
        Makes the model: the object that users call, with random weights.
    media
        `Medium` objects by modality: "image", "video", "audio".
    row_width
        Elements of a cached row.
    owner
        The attribute path from the model to the module whose `get_*_features` its forward calls.
    token_types
        Further arguments of `forward`, given the ids.
    head
        The attribute path from the model to the module whose `forward` returns logits.
    options
        Arguments of `generate` beside the prompt. None: the model has no `generate`.
    note
        A limit of this model's test, or of its entries, for docs/models.md. Mostly empty.
    """

    name: str
    build: Callable[[], nn.Module]
    media: dict[str, Medium]
    row_width: int = HIDDEN
    owner: str = "model"
    token_types: Callable[[Tensor], Call] = field(default=lambda input_ids: {})
    head: str = ""
    options: Call | None = field(default_factory=lambda: {"max_new_tokens": 3, "do_sample": False})
    note: str = ""

    @cached_property
    def lacks(self) -> str | None:
        """The class of this family that the installed `transformers` lacks, or None."""
        try:
            self.build()
        except (AttributeError, ImportError) as error:
            missing = _MISSING.match(str(error))
            if missing is None:
                raise
            return missing[1]
        return None

    @property
    def exists(self) -> bool:
        """Whether the installed `transformers` has this family."""
        return self.lacks is None

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        model = self.build().eval()
        # Even a cast to the same dtype would make real numbers of the complex buffers of Llama 4.
        return randomize(model if model.dtype == dtype else model.to(dtype))

    def features_owner(self, model: nn.Module) -> nn.Module:
        """The module at `owner`, or the one around it, which has the methods in older releases."""
        owner = model.get_submodule(self.owner)
        if any(hasattr(owner, f"get_{modality}_features") for modality in self.media):
            return owner
        return model.get_submodule(self.owner.rpartition(".")[0])

    def logits(self, model: nn.Module, prompt: Call) -> Tensor:
        return model.get_submodule(self.head)(**prompt).logits

    def generated(self, model: nn.Module, prompt: Call) -> Tensor:
        torch.manual_seed(0)  # a diffusion model begins with random tokens
        output = model.generate(**prompt, **self.options)
        return output if isinstance(output, Tensor) else output.sequences

    @torch.no_grad()
    def prompt(self, model: nn.Module, modality: str, *seeds: int) -> Call:
        """The arguments of `forward` and `generate` for a chat with the items of these seeds."""
        medium = self.media[modality]
        calls = [medium.make(seed) for seed in seeds]
        ids = [1]
        for number, call in enumerate(calls):
            length = num_rows(self.stock(model, modality)(**call))
            ids += [2 + number, *medium.run(call, length), 40, 41]
        input_ids = torch.tensor([[*ids, 42]])
        tokens = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        return tokens | self.token_types(input_ids) | medium.join(calls) | medium.extras(calls)

    def changed(self, prompt: Call, modality: str, *seeds: int, item: int) -> Call:
        """The `prompt` of these seeds with other pixels or samples of one item, except in its padding."""
        medium = self.media[modality]
        calls = [medium.make(seed) for seed in seeds]
        name, pixels = next(iter(calls[item].items()))
        calls[item][name] = torch.where(
            pixels != 0, random_tensor(_OTHER_PIXELS + item, *pixels.shape), pixels
        )
        return prompt | medium.join(calls)

    def stock(self, model: nn.Module, modality: str) -> Callable[..., Any]:
        """The method that the class defines, even if the object has an attribute of that name."""
        owner = self.features_owner(model)
        method = getattr(type(owner), f"get_{modality}_features")

        def encode(**call: Any) -> Any:
            first, *others = call  # older versions of some models have another name for the pixels of videos
            return method(owner, call[first], **{name: call[name] for name in others}, return_dict=True)

        return encode


def stock_each(zoo: ZooModel, model: nn.Module, modality: str) -> Callable[..., None]:
    """Make a stock model encode the items of `use(*seeds)` with one call each, whatever call it gets."""
    stock, medium, seeds = zoo.stock(model, modality), zoo.media[modality], []
    name = f"get_{modality}_features"
    owner = zoo.features_owner(model)

    @functools.wraps(getattr(owner, name))
    def encode_each(*args: Any, **kwargs: Any) -> Any:
        names = [*medium.make(0), "return_dict"]
        rest = {key: value for key, value in kwargs.items() if key not in names}
        return medium.joined([stock(**medium.make(seed), **rest) for seed in seeds])

    setattr(owner, name, encode_each)

    def use(*chosen: int) -> None:
        seeds[:] = chosen

    return use


def num_rows(output: Any) -> int:
    """Number of rows of a stock output for one item."""
    features = output.last_hidden_state if output.pooler_output is None else output.pooler_output
    if features is None:  # the output only has pairs of a layer and its features
        _, features = output.deepstack_features[0]
    items = [features] if isinstance(features, Tensor) else features
    return sum(item.flatten(0, -2).shape[0] for item in items)
