"""`check_split`: whether a split that no test has proved gives the rows of the stock method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.model_outputs import item_rows, rows_of

# The largest difference between the rows of an item in a call with other items, and alone, as a share of
# their norm. GEMMs of other shapes round differently: about 1e-6 in float32, 1e-2 in bfloat16. The rows of
# two items differ by about 1.
TOLERANCE = 0.1


def check_split(name: str, whole: Any, rows: Sequence[Tensor], elements: Sequence[int]) -> None:
    """Compare the output of one stock call for several items with the rows of each item, encoded alone.

    Parameters
    ----------
    name
        The model and its method, for the error message.
    whole
        The output of the stock method for all items in one call.
    rows
        The rows of each item, from a call for this item alone.
    elements
        Number of rows that each tensor of the stock output must have.

    Raises
    ------
    TypeError
        If numbers of rows differ, or the rows differ by more than rounding.
    """
    features = rows_of(whole)
    if isinstance(features, Tensor) and features.dim() == 2:
        found, expected = [len(features)], [sum(elements)]
    else:
        found, expected = [len(part) for part in features], list(elements)
    if found != expected:
        raise TypeError(
            f"{name} gives {_several(found)} rows for the items of one call, but {_several(expected)} rows "
            "for each item alone: attach needs another split for this model"
        )
    together = item_rows(whole, slices=len(found))
    alone = torch.cat([item.to(together.device) for item in rows])
    first = 0
    for item, length in enumerate(map(len, rows)):
        ours, theirs = alone[first : first + length].float(), together[first : first + length].float()
        first += length
        difference, norm = float((ours - theirs).norm()), float(theirs.norm())
        if not difference <= TOLERANCE * norm:
            raise TypeError(
                f"{name} gives rows for item {item} of a call that differ by {difference:.3g} from its rows "
                f"alone, of norm {norm:.3g}: attach needs another split for this model"
            )


def _several(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown}, ... ({len(numbers)} numbers)" if len(numbers) > 8 else shown
