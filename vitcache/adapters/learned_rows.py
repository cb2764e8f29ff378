"""`LearnedRows`: the number of rows of an item that is not encoded yet, from items that were encoded."""

from __future__ import annotations

from collections.abc import Hashable
from fractions import Fraction
from math import prod
from typing import Any

_MOST_FORMS = 4096


class LearnedRows:
    """Guesses the number of rows of an item of one kind of calls.

    An item with the shape and the values of an earlier one has as many rows. Else, if the rows of all earlier
    items were in proportion to their pixels, so are those of this item. A wrong guess is a miss in the tiers:
    the name of an entry there contains its number of rows. Any thread may call any method.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, int] = {}
        self._ratios: set[Fraction] = set()

    def learn(self, shape: tuple[int, ...], identity: Any, num_rows: int) -> None:
        """Note the number of rows of an encoded item. `identity` is its element of `CallParts.identities`."""
        if len(self._rows) >= _MOST_FORMS:
            self._rows = {}
        self._rows[_form(shape, identity)] = num_rows
        if len(self._ratios) < 2:
            self._ratios.add(Fraction(num_rows, max(1, prod(shape))))

    def guess(self, shape: tuple[int, ...], identity: Any) -> int | None:
        """Return the number of rows of an item; None: it is unknown."""
        known = self._rows.get(_form(shape, identity))
        if known is not None or len(self._ratios) != 1:
            return known
        [ratio] = tuple(self._ratios)
        number = ratio * prod(shape)
        return int(number) if number.denominator == 1 else None


def _form(shape: tuple[int, ...], identity: Any) -> Hashable:
    """Return the values that decide the number of rows. Tensors of a split of the user are left out."""
    if isinstance(identity, dict):
        identity = [value for value in identity.values() if isinstance(value, int | str)]
    return shape, None if identity is None else tuple(identity)
