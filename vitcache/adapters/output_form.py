"""`OutputForm`: makes outputs like those of a stock `get_*_features` method from rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import lru_cache
from itertools import accumulate, repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vitcache.adapters.model_outputs import CONSTANT, LEVELS, MASKS, ROWS, Features, ReadOutput
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.placement.ops import scatter_embeddings
from vitcache.tracing import traced


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
        tensor. `levels_in` is None if the output has no levels field. The field may be empty.
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
    levels_in: type | None
    layers: tuple[int, ...]
    width: int
    dtype: torch.dtype
    mask: torch.dtype | None = None
    mask_in: str | None = None
    constants: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Any, rows: Tensor) -> OutputForm:
        """Return the form of `output`, which has one item with these `rows`."""
        read = ReadOutput.of(output)
        constant, levels = getattr(output, CONSTANT, None), getattr(output, LEVELS, None)
        rows_in = tuple(name for name in ROWS if getattr(output, name, None) is read.features)
        return cls(
            cls=type(output),
            device=rows.device,
            rows_in=rows_in,
            pooler=_container(read.features),
            levels=tuple(_container(level) for level in read.levels),
            levels_in=None if levels is None else type(levels),
            layers=read.layers,
            width=rows.shape[1],
            dtype=rows.dtype,
            mask=None if read.mask_in is None else getattr(output, read.mask_in).dtype,
            mask_in=read.mask_in,
            constants={} if constant is None else {CONSTANT: constant},
        )

    def fits(self, other: OutputForm) -> bool:
        """Whether the outputs of two calls have the same containers, width and dtype."""
        return replace(other, constants=self.constants) == self

    @traced("place")
    def planes(self, rows: Sequence[Tensor | Lease], cache: EmbeddingCache) -> Sequence[Tensor]:
        """Return the features, and those of each deepstack level: tensors ``(n, hidden)`` of one new buffer.

        Each row is written once.

        Parameters
        ----------
        rows
            The rows of each item, in the form's width. A tensor may be on any device. The cache's dtype holds
            each value of the form's dtype.
        """
        lengths = [item.num_rows if isinstance(item, Lease) else item.shape[0] for item in rows]
        num_levels, num_rows = len(self.levels), sum(lengths)
        shape = 1 + num_levels, num_rows, self.width // (1 + num_levels)
        planes = torch.empty(shape, dtype=self.dtype, device=cache.device)
        if not _copy_segment(planes, rows):
            sources = [item if isinstance(item, Lease) else item.to(cache.device) for item in rows]
            starts = [0, *accumulate(lengths[:-1])]
            deepstack = planes[1:] if num_levels else None
            scatter_embeddings(planes[0], sources, starts, deepstack=deepstack)
        if cache.device != self.device:
            planes = planes.to(self.device)
        return planes.unbind()

    def output(self, planes: Sequence[Tensor], parts: Sequence[int]) -> Any:
        """Return a new output.

        Parameters
        ----------
        planes
            The features ``(n, hidden)``, and those of each deepstack level.
        parts
            Number of rows of each element of the stock container.
        """
        features, *levels = planes
        if self.mask_in is not None:
            return self._masked(features, parts, self.mask_in)
        contained = _contain(self.pooler, features, parts)
        values = dict.fromkeys(self.rows_in, contained)
        if self.constants:  # a caller may write to its output
            values |= {name: constant.clone() for name, constant in self.constants.items()}
        if self.levels_in is not None:
            values[LEVELS] = self.levels_in(map(_contain, self.levels, levels, repeat(parts)))
        if self.layers:
            values[LEVELS] = list(zip(self.layers, (contained, *values.get(LEVELS, ())), strict=True))
        return _make(self.cls, values)

    def _masked(self, features: Tensor, lengths: Sequence[int], name: str) -> Any:
        """Return an output whose items are stacked and padded to the longest, with a mask."""
        stacked = pad_sequence(list(features.split_with_sizes(list(lengths))), batch_first=True)
        positions = torch.arange(stacked.shape[1], device=self.device)
        ends = torch.tensor(lengths, device=self.device)
        mask = ((positions < ends[:, None]) == MASKS[name]).to(self.mask)
        return _make(self.cls, dict.fromkeys(self.rows_in, stacked) | {name: mask})


def _make(cls: type, values: dict[str, Any]) -> Any:
    """Return an output of a class of `transformers`.

    Some classes require a field that has no rows; it is None. Some lack the field of the rows: the stock
    method sets it as an attribute.
    """
    names, required = _fields_of(cls)
    others = values.keys() - names
    fields_of_class = {name: values[name] for name in values if name in names} if others else values
    output = cls(**required | fields_of_class)
    for name in others:
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
