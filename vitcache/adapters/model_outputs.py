"""Converts the output of a stock `get_*_features` method to rows, and rows to an output of the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from itertools import accumulate, repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.placement.ops import scatter_embeddings

Features = Tensor | tuple[Tensor, ...] | list[Tensor]
"""Features of all items: one tensor per item, or one tensor in which items are stacked or end to end."""

# The fields of an output: those with rows, those that `attach` leaves out, and those that it makes again.
_ROWS = "pooler_output", "last_hidden_state"
_LEVELS = "deepstack_features"
_HIGH_RES = {f"high_res_vision_{name}" for name in ("last_hidden_state", "hidden_states", "attentions")}
_LEFT_OUT = {"last_hidden_state", "hidden_states", "attentions", *_HIGH_RES}
_LEFT_OUT |= {f"local_{name}" for name in ("last_hidden_state", "hidden_states", "attentions")}
_MASKS = {"attention_mask": True, "audio_mel_mask": False}  # their values at valid rows of stacked features
_CONSTANT = "visual_indicator_features"  # of the weights alone, equal in all outputs

KNOWN_FIELDS = {*_ROWS, _LEVELS, *_LEFT_OUT, *_MASKS, _CONSTANT}
"""The fields of a stock output that `attach` understands. It refuses a model whose output has another."""


def item_rows(output: Any, slices: int = 1) -> Tensor:
    """Return rows `(n, hidden * (1 + deepstack levels))` of the one item in `output`.

    Parameters
    ----------
    slices
        Number of tensors, or of indices of a stacked tensor, in which the stock method returns the item.

    Raises
    ------
    RuntimeError
        If the features are in another number of tensors.
    """
    features = rows_of(output)
    mask = _mask_in(output)
    if mask is not None and isinstance(features, Tensor):
        values = getattr(output, mask).to(features.device, torch.bool)
        features = features[values == _MASKS[mask]]
    return torch.cat([_only(part, slices) for part in (features, *_levels(output))], dim=-1)


def image_rows(output: Any) -> Tensor:
    """Return rows `(n, hidden * (1 + deepstack levels))` of all items in `output`, end to end."""
    return torch.cat([_flat(features) for features in (output.pooler_output, *_levels(output))], dim=-1)


def rows_of(output: Any) -> Features:
    """Return the features of an output: its pooled ones if it has any, else its last hidden states.

    The features of an output that only has features for layers of the language model are those of the first
    layer.
    """
    if _layers(output):
        first: Features = getattr(output, _LEVELS)[0][1]
        return first
    features: Features | None = getattr(output, _ROWS[0], None)
    return output.last_hidden_state if features is None else features


def unknown_fields(output: Any) -> list[str]:
    """Return the names of the fields of `output` that have values which `attach` does not understand."""
    if not isinstance(output, Mapping):
        return [] if hasattr(output, _ROWS[0]) else [type(output).__name__]
    unknown = [name for name in output if name not in KNOWN_FIELDS]
    if not _is_features(rows_of(output)):
        unknown.append(_ROWS[0])
    if not all(map(_is_features, _levels(output))):
        unknown.append(_LEVELS)
    return unknown


@dataclass(frozen=True)
class OutputForm:
    """The containers in which a model returns the features of one modality.

    The containers differ between models and versions: a tuple, a list or one tensor; deepstack levels by item
    or end to end. So they are read from an output of the model itself.

    Attributes
    ----------
    cls, device
        Class of the output, and device of its features.
    rows_in
        The fields with the rows.
    pooler, levels, levels_in
        Containers of the rows, of each deepstack level, and of all levels: a class, or the dimensions of a
        tensor.
    layers
        The layers of the language model that the features and the levels are for, if the output names them.
    width, dtype
        Of a row with its deepstack levels.
    mask, mask_in
        Dtype and field of the mask of valid rows. None: the output has no mask.
    constants
        Fields whose values depend on the weights alone.
    """

    cls: type
    device: torch.device
    rows_in: tuple[str, ...]
    pooler: type | int
    levels: tuple[type | int, ...]
    levels_in: type
    layers: tuple[int, ...]
    width: int
    dtype: torch.dtype
    mask: torch.dtype | None = None
    mask_in: str | None = None
    constants: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Any, rows: Tensor) -> OutputForm:
        """Return the form of `output`, which has one item with these `rows`."""
        features, levels, mask = rows_of(output), _levels(output), _mask_in(output)
        constant = getattr(output, _CONSTANT, None)
        rows_in = tuple(name for name in _ROWS if getattr(output, name, None) is features)
        return cls(
            cls=type(output),
            device=rows.device,
            rows_in=rows_in,
            pooler=_container(features),
            levels=tuple(_container(level) for level in levels),
            levels_in=type(levels),
            layers=_layers(output),
            width=rows.shape[1],
            dtype=rows.dtype,
            mask=None if mask is None else getattr(output, mask).dtype,
            mask_in=mask,
            constants={} if constant is None else {_CONSTANT: constant},
        )

    def assemble(
        self, rows: Sequence[Tensor | Lease], cache: EmbeddingCache, elements: Sequence[int] | None = None
    ) -> Any:
        """Return a new output for items with these rows. Its memory is new; each row is written once.

        Parameters
        ----------
        rows
            The rows of each item, in the form's width and the cache's dtype. A tensor may be on any device.
        elements
            Number of rows of each element of the stock container. None: one element per item.
        """
        lengths = [item.num_rows if isinstance(item, Lease) else item.shape[0] for item in rows]
        num_levels, num_rows = len(self.levels), sum(lengths)
        shape = 1 + num_levels, num_rows, self.width // (1 + num_levels)
        planes = torch.empty(shape, dtype=cache.dtype, device=cache.device)
        if not _copy_segment(planes, rows):
            sources = [item if isinstance(item, Lease) else item.to(cache.device) for item in rows]
            starts = [0, *accumulate(lengths[:-1])]
            deepstack = planes[1:] if num_levels else None
            scatter_embeddings(planes[0], sources, starts, deepstack=deepstack)
        if cache.device != self.device:
            planes = planes.to(self.device)
        features, *levels = planes.unbind()
        parts = lengths if elements is None else elements
        if self.mask_in is not None:
            return self._masked(features, parts, self.mask_in)
        contained = _contain(self.pooler, features, parts)
        values = dict.fromkeys(self.rows_in, contained) | self.constants
        if levels:
            values[_LEVELS] = self.levels_in(map(_contain, self.levels, levels, repeat(parts)))
        if self.layers:
            values[_LEVELS] = list(zip(self.layers, (contained, *values.get(_LEVELS, ())), strict=True))
        return _make(self.cls, values)

    def _masked(self, features: Tensor, lengths: Sequence[int], name: str) -> Any:
        """Return an output whose items are stacked and padded to the longest, with a mask."""
        stacked = pad_sequence(list(features.split_with_sizes(list(lengths))), batch_first=True)
        positions = torch.arange(stacked.shape[1], device=self.device)
        ends = torch.tensor(lengths, device=self.device)
        mask = ((positions < ends[:, None]) == _MASKS[name]).to(self.mask)
        return _make(self.cls, dict.fromkeys(self.rows_in, stacked) | {name: mask})


def _make(cls: type, values: dict[str, Any]) -> Any:
    """Return an output of a class of `transformers`.

    Some classes require a field that has no rows; it is None. Some lack the field of the rows: the stock
    method sets it as an attribute.
    """
    names, required = _fields_of(cls)
    output = cls(**required | {name: value for name, value in values.items() if name in names})
    for name in values.keys() - names:
        setattr(output, name, values[name])
    return output


@lru_cache(maxsize=64)
def _fields_of(cls: Any) -> tuple[set[str], dict[str, None]]:
    """Return the names of the fields of a dataclass, and a value for each field that has no default."""
    known = fields(cls)
    required = [each.name for each in known if each.default is MISSING and each.default_factory is MISSING]
    return {each.name for each in known}, dict.fromkeys(required)


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
    levels = getattr(output, _LEVELS, None) or ()
    return [features for _, features in levels[1:]] if _layers(output) else levels


def _layers(output: Any) -> tuple[int, ...]:
    """Return the layers if the levels are pairs of a layer and its features, and all features are in them."""
    levels = getattr(output, _LEVELS, None) or ()
    if all(isinstance(level, tuple) and isinstance(level[0], int) for level in levels):
        return tuple(level[0] for level in levels)
    return ()


def _mask_in(output: Any) -> str | None:
    return next((name for name in _MASKS if getattr(output, name, None) is not None), None)


def _is_features(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(part, Tensor) and 2 <= part.dim() <= 3 for part in parts)


def _only(features: Features, slices: int) -> Tensor:
    if isinstance(features, Tensor) and features.dim() == 2:
        return features
    if len(features) != slices:
        raise RuntimeError(f"the model returned features of {len(features)} items, expected {slices}")
    return _flat(features)


def _flat(features: Features) -> Tensor:
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return features[0].flatten(0, -2) if len(features) == 1 else torch.cat([*features])


def _container(features: Features) -> type | int:
    return features.dim() if isinstance(features, Tensor) else type(features)


def _contain(container: type | int, flat: Tensor, lengths: Sequence[int]) -> Any:
    if isinstance(container, type):
        if len(lengths) == 1:
            return container((flat,))
        # `Tensor.split` is a Python function: it takes several times as long.
        return container(flat.split_with_sizes(list(lengths)))
    if container == 2:
        return flat
    # Items of different lengths cannot be stacked: such a stock output has all rows at one index.
    return flat.unflatten(0, (-1, lengths[0])) if len(set(lengths)) == 1 else flat[None]
