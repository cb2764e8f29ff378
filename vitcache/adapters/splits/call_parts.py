"""`CallParts`: the items of one call of a stock method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class ItemCall:
    """The call for one item: with `arguments` the stock method encodes this item alone.

    The first argument is the item's pixels, a view of the call's pixels. The stock output has the item's rows
    in `slices` tensors of equal length, or in as many indices of a stacked tensor.
    """

    arguments: dict[str, Any]
    slices: int = 1

    @property
    def pixels(self) -> Tensor:
        pixels: Tensor = next(iter(self.arguments.values()))
        return pixels


class CallParts(NamedTuple):
    """How the pixels of a call are divided into items. It has no object per item: most items are hits.

    Attributes
    ----------
    names
        The arguments of the call that `item_call` replaces by those of one item. The pixels are the first.
    bounds
        Per item, the numbers of its first element and of the element after its last. Elements are counted in
        the call's pixels in C order. None: an item's pixels are not consecutive elements.
    regions
        Per item, its index into the call's pixels: a tuple of slices and `...`. If neither `bounds` nor these
        are given, `arguments` makes the pixels of each item for its key.
    shapes
        Shape of the pixels of each item.
    identities
        Per item, the values other than the pixels that its key depends on. They are a sequence of ints, str,
        bytes and tuples of these, or arguments by name. None: no item has such values.
    arguments
        Returns the arguments that encode an item alone, given its number. The pixels are the first.
    groups
        Number of items of each tensor of the stock output, if the stock method returns the rows of several
        items as one tensor. None: one item each.
    slices
        Number of tensors of each item in the stock output.
    """

    names: tuple[str, ...]
    bounds: list[tuple[int, int]] | None
    shapes: list[tuple[int, ...]]
    identities: list[Any] | None
    arguments: Callable[[int], dict[str, Any]]
    groups: list[int] | None = None
    slices: int = 1
    regions: list[tuple[Any, ...]] | None = None

    def item_call(self, item: int) -> ItemCall:
        """Return the `ItemCall` of an item, given its number."""
        return ItemCall(self.arguments(item), self.slices)

    def identity(self, item: int) -> Any:
        """Return the element of `identities` of an item, given its number; None if there are none."""
        return None if self.identities is None else self.identities[item]

    def elements(self, lengths: list[int]) -> list[int]:
        """Return the number of rows of each tensor of the stock output, given the rows of each item.

        Raises
        ------
        RuntimeError
            If the rows of an item are not a multiple of its slices.
        """
        if self.groups is not None:
            ends = [0, *accumulate(self.groups)]
            return [sum(lengths[first:last]) for first, last in pairwise(ends)]
        found: list[int] = []
        for item, length in enumerate(lengths):
            if length % self.slices:
                raise RuntimeError(
                    f"item {item} has {length} rows, expected {self.slices} slices of equal length"
                )
            found += [length // self.slices] * self.slices
        return found


Split = Callable[[Any, dict[str, Any]], CallParts | list[dict[str, Any]] | None]
"""(config, arguments in the order of the stock signature) -> items; None: call the stock method instead.

The items are `CallParts`, or a list with the arguments of each item: `as_parts` describes it.
"""


def as_parts(items: CallParts | list[dict[str, Any]] | None) -> CallParts | None:
    """Return the result of a `Split` as `CallParts`, or None.

    Parameters
    ----------
    items
        `CallParts` or None are returned. A list contains the arguments of each item by name: with these in
        place of those of the call, the stock method encodes this item alone. The first one is the item's
        pixels, a tensor. All of them are part of the item's key. All items have the same names.

    Raises
    ------
    TypeError
        If `items` is not a list, or an item is not a dict whose first value is a tensor.
    ValueError
        If two items have other names.
    """
    if items is None or isinstance(items, CallParts):
        return items
    if not isinstance(items, list):
        raise TypeError(f"a split must return a list of dicts or None, got {type(items).__name__}")
    names: tuple[str, ...] = ()
    for item, call in enumerate(items):
        if not isinstance(call, dict) or not isinstance(next(iter(call.values()), None), Tensor):
            raise TypeError(
                f"item {item} of a split must be a dict whose first value is a tensor, got "
                f"{_types(call) if isinstance(call, dict) else type(call).__name__}"
            )
        names = names or tuple(call)
        if tuple(call) != names:
            raise ValueError(f"item {item} of a split must have the arguments {names}, got {tuple(call)}")
    return CallParts(
        names,
        bounds=None,
        shapes=[tuple(call[names[0]].shape) for call in items],
        identities=[{name: call[name] for name in names[1:]} for call in items],
        arguments=items.__getitem__,
    )


def bounds_of(ends: Iterable[int], size: int) -> list[tuple[int, int]]:
    """Return the bounds of consecutive parts, from their ends in units of `size` elements."""
    return list(pairwise(map(size.__mul__, ends)))


def check_total(name: str, found: int, unit: str, reference: str, expected: int) -> None:
    """Refuse a call whose arguments disagree about a number."""
    if found != expected:
        raise ValueError(f"{name} must have {expected} {unit} for this {reference}, got {found}")


def _types(call: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name!r}: {type(value).__name__}" for name, value in call.items()) + "}"
