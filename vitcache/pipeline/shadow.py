"""Shadow mode: a sample of the hits is encoded again, to compare the cached rows with new ones."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vitcache.arguments import to_int
from vitcache.handles import describe_count, described, refuse_copies

if TYPE_CHECKING:
    from vitcache.pages.lease import Lease

T = TypeVar("T")

logger = logging.getLogger("vitcache.shadow")


class Shadow:
    """Samples hits that are encoded again, and reports how much their cached rows differ from new rows.

    A shadow finds entries that are outdated because the weights, the processor or a kernel changed. Keys and
    checksums cannot find such entries. Pass the `Shadow` to `VisionPipeline`, or call its methods from your
    own encoder. `attach` makes a `Shadow` if `shadow_every` is not 0.

    Parameters
    ----------
    every
        Every `every`-th hit is chosen.
    report
        ``report(key, difference)`` is called after each comparison, with the largest absolute difference of
        two elements in float32: 0.0 if the rows are equal, infinity if their shapes differ.

    Raises
    ------
    TypeError
        If `every` is not an int, or `report` is not callable.
    ValueError
        If `every` is less than 1.

    Notes
    -----
    Any thread may call any method. `report` runs in the thread that calls `check`. In a pipeline this
    thread owns the encoder: `report` may call the cache, but must not call the pipeline.

    A hit is encoded alone. If the last bits of a tower's rows depend on the other items of the same call, a
    small difference is not an error.

    Examples
    --------
    >>> import torch
    >>> from vitcache import Shadow
    >>> shadow = Shadow(1000, lambda key, difference: print("differs by", difference))
    >>> shadow.check(bytes(32), torch.zeros(2, 4), lambda: torch.full((2, 4), 0.25))
    differs by 0.25

    `VisionPipeline(encode, cache, shadow=shadow)` checks every 1000th hit.
    """

    def __init__(self, every: int, report: Callable[[bytes, float], object]) -> None:
        self._every = to_int("every", every, 1)
        if not callable(report):
            raise TypeError(f"report must be callable, got {type(report).__name__}")
        self._report = report
        self._hits = itertools.count(1)

    __reduce_ex__ = refuse_copies("a copy would count the same hits; make another `Shadow`")

    @described
    def __repr__(self) -> str:
        return f"every {describe_count(self._every, 'hit')}"

    def wants(self) -> bool:
        """Count one hit, and return whether it is chosen."""
        return next(self._hits) % self._every == 0

    def choose(self, hits: Iterable[tuple[T, bytes, Lease]]) -> list[tuple[T, bytes, Tensor]]:
        """Count hits, each an item with its key and lease, and return the chosen ones.

        Each lease is replaced by a copy of its rows, made on the current stream: the lease can be released.
        """
        return [(item, key, lease.to_tensor()) for item, key, lease in hits if self.wants()]

    def check(self, key: bytes, cached: Tensor, encode: Callable[[], Tensor]) -> None:
        """Encode a hit again, compare the rows on the current stream, wait for the result and report it.

        An exception of `encode` or `report` is logged and not raised: the check must not fail the step.

        Parameters
        ----------
        key
            Key of the entry.
        cached
            Rows of the entry, ``(num_rows, row_width)``, for instance from `Lease.to_tensor`.
        encode
            Function without arguments that encodes the item and returns its rows. They are rounded to the
            dtype of `cached`, as `put` rounds them.
        """
        try:
            fresh = encode().detach().to(cached.device, cached.dtype)
            self._report(key, largest_difference(cached, fresh))
        except Exception:
            logger.exception("the shadow check of entry %s failed", key.hex())


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference of two elements in float32; two NaN count as equal."""
    if first.shape != second.shape:
        return math.inf
    if first.numel() == 0:
        return 0.0
    first, second = first.float(), second.float()
    is_equal = (first == second) | (first.isnan() & second.isnan())
    difference = (first - second).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return float(torch.where(is_equal, 0.0, difference).max())
