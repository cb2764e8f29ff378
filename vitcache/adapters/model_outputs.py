"""From the features that a model returns for one item to rows, and back to such an object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Features = Tensor | tuple[Tensor, ...] | list[Tensor]
"""Models hand out one tensor per item, or all items in one tensor, stacked or end to end."""


def item_rows(output: Any) -> Tensor:
    """Return rows `(n, hidden * (1 + deepstack levels))` of the one item that `output` is for."""
    return torch.cat([_only(features) for features in (output.pooler_output, *_levels(output))], dim=-1)


def image_rows(output: Any) -> Tensor:
    """Return rows `(n, hidden * (1 + deepstack levels))` of all items that `output` is for, end to end."""
    return torch.cat([_flat(features) for features in (output.pooler_output, *_levels(output))], dim=-1)


@dataclass(frozen=True)
class OutputForm:
    """How a model hands out the features of one modality.

    Models and versions differ: a tuple, a list or one tensor, deepstack levels by item or end to end. So the
    form is read off an output of the model itself.
    """

    cls: type
    device: torch.device
    pooler: type | int
    levels: tuple[type | int, ...]
    levels_in: type

    @classmethod
    def of(cls, output: Any) -> OutputForm:
        levels = _levels(output)
        return cls(
            cls=type(output),
            device=_only(output.pooler_output).device,
            pooler=_container(output.pooler_output),
            levels=tuple(_container(level) for level in levels),
            levels_in=type(levels),
        )

    def assemble(self, rows: list[Tensor]) -> Any:
        """Return a new output, in memory of its own, for items with these rows."""
        lengths = [len(item) for item in rows]
        width = rows[0].shape[1] // (1 + len(self.levels))
        pooler, *levels = (
            _contain(container, torch.cat([item.to(self.device) for item in part]), lengths)
            for container, part in zip(
                (self.pooler, *self.levels),
                zip(*(item.split(width, dim=1) for item in rows), strict=True),
                strict=True,
            )
        )
        if not levels:
            return self.cls(pooler_output=pooler)
        return self.cls(pooler_output=pooler, deepstack_features=self.levels_in(levels))


def _levels(output: Any) -> Any:
    return getattr(output, "deepstack_features", None) or ()


def _only(features: Features) -> Tensor:
    if isinstance(features, Tensor) and features.dim() == 2:
        return features
    if len(features) != 1:
        raise RuntimeError(f"the model returned features of {len(features)} items for a call with 1 item")
    return features[0]


def _flat(features: Features) -> Tensor:
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return features[0] if len(features) == 1 else torch.cat(features)


def _container(features: Features) -> type | int:
    return features.dim() if isinstance(features, Tensor) else type(features)


def _contain(container: type | int, flat: Tensor, lengths: list[int]) -> Any:
    if isinstance(container, type):
        return container(flat.split(lengths))
    return flat if container == 2 else flat.unflatten(0, (len(lengths), lengths[0]))
