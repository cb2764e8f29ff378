"""`ItemRuns`: the runs of tokens of the images and videos of a prompt, checked against their grids."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import chain, compress, count, pairwise
from operator import is_, ne
from typing import Any, NamedTuple

import numpy as np

from vitcache.adapters.grid_runs import Run, runs_of
from vitcache.pipeline.items import Item, Items

FindKey = Callable[[Item], bytes]


class _Placed(NamedTuple):
    """The first token of an item, and its position in the items."""

    first: int
    item: int


class ItemRuns:
    """The runs of all items of a prompt, in the order of their tokens. Immutable.

    Parameters
    ----------
    items
        The items of the prompt. The constructor checks those that `earlier` does not begin with.
    config
        The config of the base model.
    earlier
        The runs of an earlier prompt of the same model.

    Attributes
    ----------
    items
        The items, as `Items`.
    runs
        The runs, ascending.

    Raises
    ------
    TypeError, ValueError
        See `ChunkedPrefill.chunks`.
    """

    def __init__(self, items: Sequence[Item], config: Any, earlier: ItemRuns | None = None) -> None:
        self.items = items if isinstance(items, Items) else Items(items)
        old = [] if earlier is None else earlier.items[:]
        kept: list[Run] = [] if earlier is None else earlier.runs
        placed: list[_Placed] = [] if earlier is None else earlier._placed
        first_unmatched: int | None = None if earlier is None else earlier._first_unmatched
        known: list[tuple[object, ...]] = []
        if earlier is not None and _are_same(old, self.items[: len(old)]):
            known = earlier._identities
        self._identities: list[tuple[object, ...]] = [*known, *map(_identity, self.items[len(known) :])]
        shared = 0 if earlier is None else _num_equal(earlier._identities, self._identities)
        if shared < len(old):
            kept = [run for run in kept if run.item < shared]
            placed = [each for each in placed if each.item < shared]
            first_unmatched = self._find_unmatched(placed)
        new = [runs_of(position, self.items[position], config) for position in range(shared, len(self.items))]
        new_placed = sorted(_Placed(runs[0].first, runs[0].item) for runs in new if runs)
        # Sorting takes almost no time if the new items are behind the old ones.
        self.runs: list[Run] = sorted(chain(kept, *new))
        self._placed: list[_Placed] = sorted(chain(placed, new_placed))
        self._firsts = [run.first for run in self.runs]
        if new_placed:
            _check_neighbours(self.runs[max(bisect_left(self._firsts, new_placed[0].first) - 1, 0) :])
        # The first token of an item that equals no item of a later prompt, not even itself.
        found = [first for first in (first_unmatched, self._find_unmatched(new_placed)) if first is not None]
        self._first_unmatched: int | None = min(found, default=None)

    @classmethod
    def following(cls, earlier: ItemRuns | None, items: Sequence[Item], config: Any) -> ItemRuns:
        """Return the runs of `items`, and `earlier` itself if its items are the same objects."""
        if not isinstance(items, Sequence):
            raise TypeError(f"items must be a sequence of Item objects, got {type(items).__name__}")
        if earlier is not None and (items is earlier.items or _are_same(earlier.items[:], items)):
            return earlier
        return cls(items, config, earlier)

    @property
    def stop(self) -> int:
        """The token after the last token of all items."""
        return self.runs[-1].stop if self.runs else 0

    def within(self, start: int, stop: int) -> list[Run]:
        """Return the runs that overlap tokens ``[start, stop)``."""
        first = self._index_at(start)
        last = bisect_right(self._firsts, stop - 1, lo=first)
        return self.runs[first:last]

    def boundary(self, token: int) -> int:
        """Return the first token of the run that contains `token`; `token` itself, if no run contains it."""
        index = self._index_at(token)
        if index < len(self.runs) and self.runs[index].first < token:
            return self.runs[index].first
        return token

    def token_types(self, start: int, stop: int) -> np.ndarray:
        """Return 0 (text), `IMAGE` or `VIDEO` of `token_types` for each token of ``[start, stop)``, int64."""
        types = np.zeros(stop - start, np.int64)
        for run in self.within(start, stop):
            types[max(run.first - start, 0) : run.stop - start] = run.modality
        return types

    def common_prefix(self, other: ItemRuns, end: int, find_key: FindKey) -> int:
        """Return the number of leading tokens, at most `end`, in which the items of two prompts are equal.

        Only images and videos that begin before token `end` are hashed. A later one is hashed with its chunk.
        """
        mine, others = self.items[:], other.items[:]
        num_placed = len(self._placed)
        if self._placed == other._placed[:num_placed] and _are_same(mine, others[: len(mine)]):
            # A turn with more items: the objects of the last turn are compared in no Python loop.
            following = other._placed[num_placed : num_placed + 1]
            ends = (end, self._first_unmatched, *(first for first, _ in following))
            return min(first for first in ends if first is not None)
        for (first, position), (other_first, other_position) in zip(
            self._placed, other._placed, strict=False
        ):
            if first != other_first or first >= end:
                return min(first, other_first, end)
            is_alike = self._identities[position] == other._identities[other_position]
            if not is_alike or not _have_equal_rows(mine[position], others[other_position], find_key):
                return first
        shorter, longer = sorted((self._placed, other._placed), key=len)
        return min([end, *(first for first, _ in longer[len(shorter) : len(shorter) + 1])])

    def _find_unmatched(self, placed: Sequence[_Placed]) -> int | None:
        """Return the first token of the first of these items that cannot match; None if all can."""
        return next((first for first, position in placed if not _can_match(self.items[position])), None)

    def _index_at(self, token: int) -> int:
        """Return the index of the first run that ends after `token`."""
        index = bisect_right(self._firsts, token)
        return index - 1 if index and self.runs[index - 1].stop > token else index


def _num_equal(mine: Sequence[object], others: Sequence[object]) -> int:
    """Return the number of leading elements that are equal."""
    return next(compress(count(), map(ne, mine, others)), min(len(mine), len(others)))


def _are_same(earlier: Sequence[Item], items: Sequence[Item]) -> bool:
    """Whether two sequences have the same objects."""
    return len(earlier) == len(items) and all(map(is_, earlier, items))


def _identity(item: Item) -> tuple[object, ...]:
    """Return all that two items must have in common besides their rows: tokens, grid, positions, widths."""
    get = item.encoder_kwargs.get
    numbers = map(_comparable, (get("grid_thw"), get("video_grid_thw"), get("second_per_grid_t")))
    return item.spans, item.num_rows, item.row_width, _can_match(item), *numbers


def _comparable(value: object) -> object:
    """Return a value that equals another one only if the types are equal, too: 1 and True are equal."""
    if isinstance(value, list | tuple):
        return type(value), *map(type, value), *value
    return (type(value), value) if value is None or isinstance(value, int | float) else object()


def _check_neighbours(runs: Sequence[Run]) -> None:
    """Refuse runs that overlap, and runs of one modality without a token between: the model sees one grid."""
    for run, following in pairwise(runs):
        if following.first < run.stop + (run.modality == following.modality):
            raise ValueError(
                f"item {run.item} ends at token {run.stop} and item {following.item} begins at token "
                f"{following.first}: expected a token between two images, videos or frames"
            )


def _have_equal_rows(mine: Item, others: Item, find_key: FindKey) -> bool:
    """Whether two items with equal identities have equal rows."""
    if not _can_match(mine):
        return False
    if mine is others:
        return True
    if mine.key is not None and (mine.key, mine.complete_key) == (others.key, others.complete_key):
        return True
    try:
        return find_key(mine) == find_key(others)
    except Exception:  # the pipeline will report it; here the item equals only itself
        return False


def _can_match(item: Item) -> bool:
    """Whether an item can equal itself in a later prompt: rows without a key may have been overwritten."""
    return item.rows is None or item.key is not None
