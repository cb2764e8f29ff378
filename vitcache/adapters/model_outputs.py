"""Reads the output of a stock `get_*_features` method: which fields it has, and the rows in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Features = Tensor | tuple[Tensor, ...] | list[Tensor]
"""Features of all items: one tensor per item, or one tensor in which items are stacked or end to end."""

# The fields of an output: those with rows, those that `attach` leaves out, and those that it makes again.
ROWS = "pooler_output", "last_hidden_state"
LEVELS = "deepstack_features"
CONSTANT = "visual_indicator_features"  # of the weights alone, equal in all outputs
MASKS = {"attention_mask": True, "audio_mel_mask": False}  # their values at valid rows of stacked features
_STATES = "last_hidden_state", "hidden_states", "attentions"
_LEFT_OUT = {prefix + name for prefix in ("", "high_res_vision_", "local_") for name in _STATES}

KNOWN_FIELDS = {*ROWS, LEVELS, *_LEFT_OUT, *MASKS, CONSTANT}
"""The fields of a stock output that `attach` understands. It refuses a model whose output has another."""


class ReadOutput(NamedTuple):
    """The parts of an output that `attach` understands.

    Attributes
    ----------
    features
        The pooled features if there are any, else the last hidden states. If the output only has features for
        layers of the language model, those of the first layer.
    levels
        The features of each deepstack level, or of each further layer.
    layers
        The layers of the language model that the features and the levels are for, if the output names them.
    mask_in
        The field with the mask of valid rows. None: the output has no mask.
    mask
        Whether each row of the stacked features is valid.
    """

    features: Features
    levels: Sequence[Features]
    layers: tuple[int, ...]
    mask_in: str | None
    mask: Tensor | None

    @classmethod
    def of(cls, output: Any) -> ReadOutput:
        """Read an output."""
        levels = getattr(output, LEVELS, None) or ()
        layers: tuple[int, ...] = ()
        if levels and all(isinstance(level, tuple) and isinstance(level[0], int) for level in levels):
            layers, (features, *levels) = zip(*levels, strict=True)
        else:
            features = getattr(output, ROWS[0], None)
            if features is None:
                features = getattr(output, ROWS[1], None)
        mask_in = next((name for name in MASKS if getattr(output, name, None) is not None), None)
        if mask_in is None or not isinstance(features, Tensor):
            return cls(features, levels, layers, None, None)
        valid = getattr(output, mask_in).to(features.device, torch.bool) == MASKS[mask_in]
        return cls(features, levels, layers, mask_in, valid)

    def rows(self, slices: int) -> Tensor:
        """As `item_rows`."""
        features = self.features
        if self.mask is not None and isinstance(features, Tensor):
            features = features[self.mask]
        return torch.cat([_only(part, slices) for part in (features, *self.levels)], dim=-1)

    def unknown(self) -> list[str]:
        """Return the names of fields whose values are not tensors of rows, or lists of these."""
        fields = {ROWS[0]: [self.features], LEVELS: self.levels}
        return [name for name, values in fields.items() if not all(map(_is_features, values))]


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
    return ReadOutput.of(output).rows(slices)


def image_rows(output: Any) -> Tensor:
    """Return rows `(n, hidden * (1 + deepstack levels))` of all items in `output`, end to end."""
    read = ReadOutput.of(output)
    return torch.cat([_flat(features) for features in (read.features, *read.levels)], dim=-1)


def unknown_fields(output: Any, read: ReadOutput, *, has_constants: bool) -> list[str]:
    """Return the names of fields and attributes of `output` that `attach` does not understand.

    `read` is the same output, read. If `has_constants` is true, a field is known that has the same value in
    all outputs of the model.
    """
    named = {*output} if isinstance(output, Mapping) else set()
    named |= {name for name, value in vars(output).items() if value is not None and not name.startswith("_")}
    known = KNOWN_FIELDS if has_constants else KNOWN_FIELDS - {CONSTANT}
    return sorted(named - known) + read.unknown()


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
