"""Shadow mode: now and then a hit is encoded again, to see whether the cached rows are still those."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vitcache.arguments import to_int

if TYPE_CHECKING:
    from vitcache.pages.lease import Lease

T = TypeVar("T")

logger = logging.getLogger("vitcache.shadow")


class Shadow:
    """Chooses hits to be encoded again, and reports how far their cached rows are from fresh ones.

    It finds what no key and no checksum can: entries that were right once, and are not since the weights, the
    processor or a kernel changed. It is for `VisionPipeline`, or whoever encodes; `attach` makes its own.

    Items are encoded alone: where the last bits of a tower's rows depend on what it encodes beside, a small
    difference is no fault.

    Parameters
    ----------
    every
        One hit in so many is chosen: the last of them.
    report
        Called with the key and the largest absolute difference of two elements, after each comparison: 0.0
        where all are equal, infinity where the shapes are not.

    Raises
    ------
    TypeError
        If `every` is no int.
    ValueError
        If it is less than 1.

    Notes
    -----
    Any thread may call. `report` runs in the thread that checks, which has the encoder of a pipeline to
    itself meanwhile: `report` may call the cache, but no pipeline.
    """

    def __init__(self, every: int, report: Callable[[bytes, float], object]) -> None:
        self._every = to_int("every", every, 1)
        self._report = report
        self._hits = itertools.count(1)

    def wants(self) -> bool:
        """Count a hit; return whether it is to be encoded again."""
        return next(self._hits) % self._every == 0

    def choose(self, hits: Iterable[tuple[T, bytes, Lease]]) -> list[tuple[T, bytes, Tensor]]:
        """Count hits, each an item with its key and lease; return those that are to be encoded again.

        Each comes with a copy of its rows, so that its lease may be released.
        """
        return [(item, key, lease.to_tensor()) for item, key, lease in hits if self.wants()]

    def check(self, key: bytes, cached: Tensor, encode: Callable[[], Tensor]) -> None:
        """Encode again, compare on the current stream, wait for the result and report it.

        What is raised meanwhile is logged, and nothing is reported: what was cached is served all the same.

        Parameters
        ----------
        key
            Of the entry.
        cached
            Its rows ``(num_rows, row_width)``, such as from `Lease.to_tensor`.
        encode
            Returns what the encoder gives for its item now. It is rounded to the dtype of `cached`, as a
            `put` would round it.
        """
        try:
            fresh = encode().detach().to(cached.device, cached.dtype)
            self._report(key, largest_difference(cached, fresh))
        except Exception:
            logger.exception("entry %s could not be compared with its item encoded again", key.hex())


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference of two elements in float32; two NaN do not differ."""
    if first.shape != second.shape:
        return math.inf
    if first.numel() == 0:
        return 0.0
    first, second = first.float(), second.float()
    same = (first == second) | (first.isnan() & second.isnan())
    apart = (first - second).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return float(torch.where(same, 0.0, apart).max())
