"""Requests and items as SGLang's classes show them to the plug-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Modality(Enum):
    IMAGE = 1
    VIDEO = 2
    AUDIO = 3


class DataItem:
    """As `MultimodalDataItem`: unknown attributes are data of the model, and a copy has no other state."""

    FIELDS = ("modality", "feature", "offsets", "hash", "identity", "precomputed_embeddings")

    def __init__(self, modality: Modality = Modality.IMAGE, feature: Any = None, **values: Any) -> None:
        state = dict.fromkeys(self.FIELDS) | {"modality": modality, "feature": feature}
        self.__dict__["model_specific_data"] = {}
        self.__dict__.update(state)
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        owner = self.__dict__ if name in self.FIELDS else self.model_specific_data
        owner[name] = value

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("model_specific_data", {})
        if name in data:
            return data[name]
        raise AttributeError(name)

    def __copy__(self) -> DataItem:
        made = DataItem(**{name: self.__dict__[name] for name in self.FIELDS})
        made.__dict__["model_specific_data"] = self.model_specific_data
        return made


@dataclass
class Inputs:
    """As `MultimodalInputs`."""

    mm_items: list[DataItem | None] = field(default_factory=list)

    def release_features(self) -> None:
        for item in self.mm_items:
            if item is not None:
                item.feature = None


def request(inputs: Inputs | None, salt: str | None = None, key: str | None = None) -> SimpleNamespace:
    """As a `Req` whose items have been extended."""
    return SimpleNamespace(multimodal_inputs=inputs, cache_salt=salt, extra_key=key)


def feature(seed: int, num_rows: int) -> Tensor:
    """A feature of one patch ``(3,)`` per row."""
    return torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(seed))


def image(seed: int, *offsets: tuple[int, int], **values: Any) -> DataItem:
    """An image with inclusive offsets, whose feature has one patch per token."""
    num_rows = sum(last - first + 1 for first, last in offsets)
    return DataItem(**{"feature": feature(seed, num_rows), "offsets": list(offsets)} | values)
