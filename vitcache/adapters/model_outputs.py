"""Converts the output of a model's `get_image_features` to rows, and rows to an output of the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Any

import torch
from torch import Tensor

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.placement.ops import scatter_embeddings

Features = Tensor | tuple[Tensor, ...] | list[Tensor]
"""Features of all items: one tensor per item, or one tensor in which items are stacked or end to end."""


def item_rows(output: Any) -> Tensor:
    """Return rows `(n, hidden * (1 + deepstack levels))` of the one item in `output`."""
    return torch.cat([_only(features) for features in (output.pooler_output, *_levels(output))], dim=-1)


def image_rows(output: Any) -> Tensor:
    """Return rows `(n, hidden * (1 + deepstack levels))` of all items in `output`, end to end."""
    return torch.cat([_flat(features) for features in (output.pooler_output, *_levels(output))], dim=-1)


@dataclass(frozen=True)
class OutputForm:
    """The containers in which a model returns the features of one modality.

    The containers differ between models and versions: a tuple, a list or one tensor; deepstack levels by item
    or end to end. So they are read from an output of the model itself.
    """

    cls: type
    device: torch.device
    pooler: type | int
    levels: tuple[type | int, ...]
    levels_in: type

    @classmethod
    def of(cls, output: Any) -> OutputForm:
        """Return the form of `output`, which has one item."""
        levels = _levels(output)
        return cls(
            cls=type(output),
            device=_only(output.pooler_output).device,
            pooler=_container(output.pooler_output),
            levels=tuple(_container(level) for level in levels),
            levels_in=type(levels),
        )

    def assemble(self, rows: Sequence[Tensor | Lease], cache: EmbeddingCache) -> Any:
        """Return a new output for items with these rows. Its memory is new; each row is written once.

        Rows have the cache's width and dtype. A tensor may be on any device.
        """
        lengths = [item.num_rows if isinstance(item, Lease) else item.shape[0] for item in rows]
        num_levels, num_rows = len(self.levels), sum(lengths)
        shape = 1 + num_levels, num_rows, cache.row_width // (1 + num_levels)
        planes = torch.empty(shape, dtype=cache.dtype, device=cache.device)
        if not _copy_segment(planes, rows):
            sources = [item if isinstance(item, Lease) else item.to(cache.device) for item in rows]
            starts = [0, *accumulate(lengths[:-1])]
            deepstack = planes[1:] if num_levels else None
            scatter_embeddings(planes[0], sources, starts, deepstack=deepstack)
        if cache.device != self.device:
            planes = planes.to(self.device)
        features, *levels = planes.unbind()
        pooler = _contain(self.pooler, features, lengths)
        if not levels:
            return self.cls(pooler_output=pooler)
        parts = map(_contain, self.levels, levels, repeat(lengths))
        return self.cls(pooler_output=pooler, deepstack_features=self.levels_in(parts))


def _copy_segment(planes: Tensor, rows: Sequence[Tensor | Lease]) -> bool:
    """Copy the rows of a single hit; return False, and copy nothing, if this takes more than one copy.

    For one item, one copy takes a fraction of the host time of `scatter_embeddings`.
    """
    if len(rows) != 1 or not isinstance(lease := rows[0], Lease) or lease.tier != "device":
        return False
    lease.use()
    segments = lease.segments()
    if len(segments) != 1:
        return False
    planes.copy_(segments[0].view(planes.shape[1], planes.shape[0], planes.shape[2]).transpose(0, 1))
    return True


def _levels(output: Any) -> Any:
    return getattr(output, "deepstack_features", None) or ()


def _only(features: Features) -> Tensor:
    if isinstance(features, Tensor) and features.dim() == 2:
        return features
    if len(features) != 1:
        raise RuntimeError(f"the model returned features of {len(features)} items, expected 1")
    return features[0]


def _flat(features: Features) -> Tensor:
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return features[0] if len(features) == 1 else torch.cat(features)


def _container(features: Features) -> type | int:
    return features.dim() if isinstance(features, Tensor) else type(features)


def _contain(container: type | int, flat: Tensor, lengths: list[int]) -> Any:
    if isinstance(container, type):
        if len(lengths) == 1:
            return container((flat,))
        # `Tensor.split` is a Python function: it takes several times as long.
        return container(flat.split_with_sizes(lengths))
    return flat if container == 2 else flat.unflatten(0, (len(lengths), lengths[0]))
