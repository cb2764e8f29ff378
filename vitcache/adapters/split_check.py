"""`SplitCheck`: whether a split that no test has verified gives the rows of the stock method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.model_outputs import ReadOutput, item_rows
from vitcache.adapters.output_form import OutputForm
from vitcache.pages.lease import Lease

TOLERANCES = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""The largest difference between the rows of an item in a call with other items, and alone, as a share of
their norm. Rounding is below it: GEMMs may use TF32 for float32."""


class SplitCheck:
    """Compares the items of a call with the stock method's output for the whole call.

    A call whose items have equal numbers of rows shows less than one whose items differ: a stock method may
    stack equal items and pad different ones. So one call of each kind is compared.

    Parameters
    ----------
    name
        The method and the class of its model, for error messages.

    Attributes
    ----------
    is_done
        Whether no call needs a comparison any more.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Whether the items of a call had equal numbers of rows, and whether they were one item several times.
        self._compared: set[tuple[bool, bool]] = set()
        self.is_done = False

    def run(
        self,
        whole: Callable[[], Any],
        rows: Sequence[Tensor | Lease],
        form: OutputForm,
        elements: Sequence[int],
        *,
        repeats_one: bool,
    ) -> None:
        """Compare one call of this kind, unless an earlier call of this kind was compared.

        Parameters
        ----------
        whole
            Returns the output of the stock method for all items in one call.
        rows
            The rows of each item, from a call for this item alone.
        form
            The form of an output for one item.
        elements
            Number of rows that each tensor of the stock output must have.
        repeats_one
            Whether all items of the call are equal. Such a call does not verify calls of different items.

        Raises
        ------
        TypeError
            If containers or numbers of rows differ, or the rows differ by more than rounding.
        """
        kind = len(set(elements)) == 1, repeats_one
        if kind in self._compared:
            return
        if self._compare(whole(), rows, form, elements) or repeats_one:
            self._compared.add(kind)
        self.is_done = {(True, False), (False, False)} <= self._compared

    def _compare(
        self, whole: Any, rows: Sequence[Tensor | Lease], form: OutputForm, elements: Sequence[int]
    ) -> bool:
        """Compare one call; return whether its items differ by more than the tolerance."""
        features = ReadOutput.of(whole).features
        if isinstance(features, Tensor) and features.dim() == 2:
            found, expected = [len(features)], [sum(elements)]
        else:
            found, expected = [len(part) for part in features], list(elements)
        if found != expected and form.mask_in is None:
            raise TypeError(
                f"{self._name} gives {_several(found)} rows for the items of one call, but "
                f"{_several(expected)} rows for each item alone: attach needs another split for this model"
            )
        together = item_rows(whole, slices=len(found))
        if not form.fits(OutputForm.of(whole, together)):
            raise TypeError(
                f"{self._name} returns the items of one call in other containers than one item: attach needs "
                "another split for this model"
            )
        first = 0
        seen: list[Tensor] = []
        tolerance = TOLERANCES[form.dtype]
        for item, each in enumerate(rows):
            alone = (each.to_tensor() if isinstance(each, Lease) else each).to(together.device).float()
            theirs = together[first : first + len(alone)].float()
            first += len(alone)
            norm, difference = _distance(alone, theirs)
            if not difference <= tolerance * norm:
                raise TypeError(
                    f"{self._name} gives rows for item {item} of a call that differ by {difference:.3g} from "
                    f"its rows alone, of norm {norm:.3g}: attach needs another split for this model"
                )
            seen.append(alone)
        return all(_differ(a, b, 2 * tolerance) for a, b in combinations(seen, 2))


def _distance(alone: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return the norm of `theirs`, and of the difference. NaN and infinity are equal in equal places."""
    if len(alone) != len(theirs):
        return float(theirs.norm()), math.inf
    is_equal = ~(alone.isfinite() | theirs.isfinite())
    difference = (alone - theirs).masked_fill(is_equal, 0)
    return float(theirs.masked_fill(is_equal, 0).norm()), float(difference.norm())


def _differ(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether the rows of two items are further apart than the tolerance."""
    if first.shape != second.shape:
        return True
    norm, difference = _distance(first, second)
    return difference > tolerance * norm


def _several(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown}, ... ({len(numbers)} numbers)" if len(numbers) > 8 else shown
