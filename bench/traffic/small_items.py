"""Traffic with small items, such as icons and short audio, and a cache that accounts for exact bytes.

Pages are most wasteful for small items. `lru_encodes` counts the encodes of a cache without pages.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

from vitcache.bench.traffic.traces import Access, image

MAX_ROWS = 9


def make_small_items(length: int, items: int, seed: int = 0) -> list[Access]:
    """Return `length` accesses to `items` items of 1 to `MAX_ROWS` rows; the popularity is Zipf's.

    The item of rank r is accessed in proportion to 1 / r. The number of its rows does not depend on r.
    """
    rng = random.Random(seed)
    accesses = [image(("small", seed, number), rng.randint(1, MAX_ROWS), 1.0) for number in range(items)]
    weights = list(accumulate(1 / rank for rank in range(1, items + 1)))
    return rng.choices(accesses, cum_weights=weights, k=length)


def total_rows(trace: Sequence[Access]) -> int:
    """Return the number of rows of all different items of a trace."""
    return sum({access.key: access.num_rows for access in trace}.values())


def lru_encodes(trace: Sequence[Access], capacity_rows: int) -> int:
    """Return the encodes of an LRU cache whose entries occupy exactly their rows."""
    entries: OrderedDict[bytes, int] = OrderedDict()
    used = encodes = 0
    for key, num_rows, _ in trace:
        if key in entries:
            entries.move_to_end(key)
            continue
        encodes += 1
        if num_rows > capacity_rows:
            continue
        while used + num_rows > capacity_rows:
            _, evicted_rows = entries.popitem(last=False)
            used -= evicted_rows
        entries[key] = num_rows
        used += num_rows
    return encodes
