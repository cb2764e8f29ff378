"""The base model, the prompt and the contenders of the merge bench.

The vision tower has patches of one element, and one patch per row, so that an image has only 3.5 KiB to hash.
A stand-in for the language model returns its input embeddings and its deepstack levels, so that a call is
the embedding of the ids and the merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

import vitcache
from vitcache.bench.traffic.simulation import PAGE_ROWS

Merged = tuple[Tensor, ...]  # inputs_embeds and the deepstack levels
TEXT_TOKENS = 16  # before each image, and again after it


@dataclass(frozen=True)
class MergeCase:
    """One prompt with `images` different images; a row has `levels` deepstack levels."""

    images: int
    levels: int = 0
    hidden: int = 4096
    grid: tuple[int, int, int] = (1, 22, 40)  # the rows of 1280x720 pixels in Qwen3-VL

    @property
    def name(self) -> str:
        """The number of images, and of deepstack levels if there are any."""
        levels = f", {self.levels} deepstack levels" if self.levels else ""
        return f"{self.images} x {prod(self.grid)} rows{levels}"


def return_inputs(
    *, inputs_embeds: Tensor, deepstack_visual_embeds: Sequence[Tensor] | None = None, **_: Any
) -> Merged:
    """Stand in for the forward of the language model: return ``inputs_embeds`` and the deepstack levels."""
    return inputs_embeds, *(deepstack_visual_embeds or ())


def build_base(case: MergeCase, device: torch.device) -> Any:
    """Return the base model of a Qwen3-VL in bfloat16, without the layers of its language model."""
    from vitcache.demo.model import SIZES, make_config, random_model

    size = SIZES["tiny"]
    text = {**size.text, "hidden_size": case.hidden, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = {
        "depth": max(case.levels, 1),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 1,
        "out_hidden_size": case.hidden,
        "deepstack_visual_indexes": list(range(case.levels)),
        "num_position_embeddings": 576,
        "in_channels": 1,
        "temporal_patch_size": 1,
        "spatial_merge_size": 1,
    }
    config = make_config(replace(size, text=text, vision=vision, patch_size=1))
    base = random_model(config, torch.bfloat16, device).model
    base.language_model.forward = return_inputs
    return base


class MergeScene:
    """The models and inputs of one case, on one device; every image is in the cache.

    Attributes
    ----------
    contenders
        For each name, a call that returns the inputs of the language model. ``stock`` is the stock forward
        with rows that were encoded before. ``off`` and ``placed`` are attached models that share the entries
        of one cache. ``limit`` looks up the ids, and copies the stock rows to their tokens.
    placeholder
        The id of image tokens.
    """

    def __init__(self, case: MergeCase, device: torch.device) -> None:
        from vitcache.demo.model import share_weights

        self.case = case
        base = build_base(case, device)
        self.placeholder = base.config.image_token_id
        rows = prod(case.grid)
        self._pixels = torch.randn(case.images * rows, 1)
        self._grids = torch.tensor([case.grid] * case.images, device=device)
        self._starts = [TEXT_TOKENS + image * (rows + 2 * TEXT_TOKENS) for image in range(case.images)]
        self._ids = torch.randint(0, 200, (1, case.images * (rows + 2 * TEXT_TOKENS)), device=device)
        for start in self._starts:
            self._ids[0, start : start + rows] = self.placeholder
        self._positions = torch.zeros(3, *self._ids.shape, dtype=torch.int64, device=device)
        self._weight = base.language_model.embed_tokens.weight
        self._output = self._encode(base)
        self._models = {name: share_weights(base) for name in ("off", "placed")}
        self._models["stock"] = base
        base.get_image_features = lambda *_, **__: self._output
        self._calls = dict.fromkeys(self._models, 0)
        self._attachments: dict[str, vitcache.Attachment] = {}
        self._counted: dict[str, Any] = {}
        self.contenders: dict[str, Callable[[], Any]] = {
            name: partial(self._forward, name) for name in ("stock", "off", "placed")
        }
        self.contenders["limit"] = self._copy

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the models of ``off`` and ``placed``, and encode all images, for the time of the block."""
        case, cache = self.case, None
        entry_rows = -(-prod(case.grid) // PAGE_ROWS) * PAGE_ROWS
        entry_bytes = entry_rows * case.hidden * (1 + case.levels) * self._weight.itemsize
        try:
            for name, placement in (("off", "off"), ("placed", "auto")):
                options = {"device_bytes": case.images * entry_bytes} if cache is None else {}
                attachment = vitcache.attach(
                    self._models[name], cache, namespace="merge", placement=placement, **options
                )
                cache = attachment.cache
                self._attachments[name] = attachment
                self._fill(self._models[name])
                self._forward(name)
            self._counted = {name: attachment.stats() for name, attachment in self._attachments.items()}
            self._calls = dict.fromkeys(self._calls, 0)
            yield
        finally:
            for attachment in self._attachments.values():
                attachment.detach()
            if cache is not None:
                cache.close()

    def check_counts(self) -> None:
        """Raise RuntimeError unless all images were hits, and the calls of ``placed`` alone were placed."""
        for name, attachment in self._attachments.items():
            before, stats, calls = self._counted[name], attachment.stats(), self._calls[name]
            expected = {
                "encoded": 0,
                "hits": calls * self.case.images,
                "placed_calls": calls if name == "placed" else 0,
            }
            found = {field: getattr(stats, field) - getattr(before, field) for field in expected}
            if found != expected:
                raise RuntimeError(
                    f"expected {expected} in {calls} calls of {name}, got {found}: no number; "
                    f"calls that were not placed: {dict(stats.unplaced_calls)}"
                )

    def _fill(self, model: Any) -> None:
        """Encode the images that are not in the cache, in a call per image.

        In one call, the rows of all images would leave a large free region in the heap of the C library. New
        tensors that fit in it need no new pages of the operating system, and those that do not fit need them.
        """
        rows = prod(self.case.grid)
        for pixels in self._pixels.split(rows):
            model.get_image_features(pixels, self._grids[:1], return_dict=True)

    def _forward(self, name: str) -> Merged:
        self._calls[name] += 1
        merged: Merged = self._models[name](
            self._ids, position_ids=self._positions, pixel_values=self._pixels, image_grid_thw=self._grids
        )
        return merged

    def _copy(self) -> Merged:
        inputs_embeds = embedding(self._ids, self._weight)
        features = self._output.pooler_output
        for start, rows in zip(self._starts, features, strict=True):
            inputs_embeds[0, start : start + len(rows)].copy_(rows)
        return inputs_embeds, *(level.clone() for level in self._levels)

    def _encode(self, base: Any) -> Any:
        """Return the output of the stock method for all images, each encoded alone as `attach` does."""
        rows = prod(self.case.grid)
        shape = 1 + self.case.levels, self.case.images * rows, self.case.hidden
        planes = torch.empty(shape, dtype=self._weight.dtype, device=self._ids.device)
        for pixels, part in zip(self._pixels.split(rows), planes.split(rows, dim=1), strict=True):
            output = base.get_image_features(pixels.to(part.device), self._grids[:1], return_dict=True)
            for plane, features in zip(part, (output.pooler_output, *output.deepstack_features), strict=True):
                plane.copy_(features[0])
        features, *self._levels = planes.unbind()
        levels = [level.split(rows) for level in self._levels]
        return type(output)(pooler_output=features.split(rows), deepstack_features=levels)
