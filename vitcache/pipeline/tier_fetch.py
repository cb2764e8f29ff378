"""`fetch_missing`: asks the tiers below the host tier for items that are not in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.fetch import Fetch


class Wanted(NamedTuple):
    """The rows of one item. `row_width`: elements of a row."""

    key: bytes
    num_rows: int
    row_width: int
    tenant: str


def fetch_missing(
    cache: EmbeddingCache,
    wanted: Iterable[Wanted],
    on_begin: Callable[[Fetch], object] = lambda fetch: None,
) -> list[bytes]:
    """Fetch items from the tiers of a cache, and wait at most its `fetch_timeout_s`; return keys that it has.

    Rows that arrive are entries of the cache, also if they are late. The host waits, so call it neither on a
    hot path nor while a claim or a lock is held.

    Parameters
    ----------
    on_begin
        Called with each fetch as soon as it has begun, so that another thread can cancel it.
    """
    by_tenant: dict[str, dict[bytes, Wanted]] = {}
    for item in wanted:
        by_tenant.setdefault(item.tenant, {})[item.key] = item
    fetches: list[tuple[Fetch, list[bytes]]] = []
    for tenant, items in by_tenant.items():
        keys, found = list(items), items.values()
        num_rows, widths = [item.num_rows for item in found], [item.row_width for item in found]
        fetch = cache.begin_fetch(keys, num_rows, row_width=widths, tenant=tenant)
        on_begin(fetch)
        fetches.append((fetch, keys))
    return [
        key for fetch, keys in fetches for key, is_cached in zip(keys, fetch.wait(), strict=True) if is_cached
    ]
