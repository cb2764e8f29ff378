"""`ItemRuns`: the runs of tokens of the images and videos of a prompt, checked against their grids."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import is_
from typing import Any

import numpy as np

from vitcache.adapters.grid_runs import Run, grid_of, runs_of
from vitcache.pipeline.items import Item, Items

FindKey = Callable[[Item], bytes]


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
        self.runs: list[Run] = []
        shared = 0
        if earlier is not None:
            shared = _num_shared(earlier.items[:], self.items[:])
            self.runs = [run for run in earlier.runs if run.item < shared]
        for position in range(shared, len(self.items)):
            self.runs += runs_of(position, self.items[position], config)
        self.runs.sort()
        _check_neighbours(self.runs)
        self._firsts = [run.first for run in self.runs]
        # First token and object of each item that has tokens, ascending.
        first_runs = {run.item: run.first for run in reversed(self.runs)}
        placed = [(first, self.items[position]) for position, first in first_runs.items()]
        self._placed = placed[::-1]
        # The first token of an item that equals no item of a later prompt, not even itself.
        self._first_unmatched = next((first for first, item in self._placed if not _can_match(item)), None)

    @classmethod
    def following(cls, earlier: ItemRuns | None, items: Sequence[Item], config: Any) -> ItemRuns:
        """Return the runs of `items`, and `earlier` itself if its items are the same objects."""
        if earlier is not None:
            if items is earlier.items:
                return earlier
            if len(items) == len(earlier.items) and all(map(is_, items, earlier.items[:])):
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
        if self is other:
            return end if self._first_unmatched is None else min(end, self._first_unmatched)
        for (first, mine), (other_first, others) in zip(self._placed, other._placed, strict=False):
            if min(first, other_first) >= end:
                return end
            is_equal = mine is others and _can_match(mine)
            if not is_equal and _content(mine, find_key) != _content(others, find_key):
                return min(first, other_first)
        shorter, longer = sorted((self._placed, other._placed), key=len)
        return min([end, *(first for first, _ in longer[len(shorter) : len(shorter) + 1])])

    def _index_at(self, token: int) -> int:
        """Return the index of the first run that ends after `token`."""
        index = bisect_right(self._firsts, token)
        return index - 1 if index and self.runs[index - 1].stop > token else index


def _num_shared(earlier: Sequence[Item], items: Sequence[Item]) -> int:
    """Return the number of leading objects that two sequences share."""
    number = 0
    for number, (mine, others) in enumerate(zip(earlier, items, strict=False)):
        if mine is not others:
            return number
    return min(len(earlier), len(items))


def _check_neighbours(runs: Sequence[Run]) -> None:
    """Refuse runs that overlap, and runs of one modality without a token between: the model sees one grid."""
    for run, following in pairwise(runs):
        if following.first < run.stop + (run.modality == following.modality):
            raise ValueError(
                f"item {run.item} ends at token {run.stop} and item {following.item} begins at token "
                f"{following.first}: expected a token between two images, videos or frames"
            )


def _can_match(item: Item) -> bool:
    """Whether an item equals itself in a later prompt: the caller may have overwritten rows without a key."""
    return item.rows is None or item.key is not None


def _content(item: Item, find_key: FindKey) -> tuple[object, ...]:
    """Return a value that is equal for two items only if their rows, tokens and positions are equal."""
    content: object
    if not _can_match(item):
        content = object()  # equals nothing
    else:
        try:
            content = find_key(item)
        except Exception:  # the pipeline will report it; here the item equals only itself
            content = id(item)
    return content, item.num_rows, item.spans, grid_of(0, item)
