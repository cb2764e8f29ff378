"""Look-up and claims of items: for steps, for prefetches, and for calls of an attached model."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN

from vitcache import Claim, EmbeddingCache, Lease
from vitcache.pipeline.lookup import claim_all, look_up

KEYS = [bytes([number]) * 32 for number in range(4)]


@dataclass
class LookupItem:
    key: bytes | None
    num_rows: int | None = None
    rows: Any = None
    claim: Claim | None = None
    error: Exception | None = None


def fill(cache: EmbeddingCache, *numbers: int, num_rows: int = 1) -> None:
    for number in numbers:
        assert cache.put(KEYS[number], torch.full((num_rows, HIDDEN), float(number)))


def test_look_up_leases_hits_and_claims_misses() -> None:
    cache, leases = make_cache(), []
    fill(cache, 1)
    failed, precomputed = (
        LookupItem(KEYS[3], error=ValueError("wrong")),
        LookupItem(None, rows=torch.zeros(1, HIDDEN)),
    )
    items = [
        LookupItem(KEYS[0]),
        LookupItem(KEYS[1]),
        failed,
        precomputed,
        LookupItem(KEYS[2]),
        LookupItem(None),
    ]
    with ExitStack() as cleanup:
        missing = look_up(cache, items, leases, cleanup)
        assert missing == [items[0], items[4], items[5]]
        assert [item.claim is not None and item.claim.is_mine for item in items] == [
            True,
            False,
            False,
            False,
            True,
            False,
        ]
        assert leases == [items[1].rows]
        assert isinstance(leases[0], Lease)
        assert not cache.claim(KEYS[0]).is_mine
    assert cache.claim(KEYS[0]).is_mine
    assert not leases[0].released  # the caller releases its leases


@pytest.mark.parametrize("num_rows", [None, 1, 2])
def test_look_up_drops_an_entry_whose_num_rows_differs(num_rows: int | None) -> None:
    cache, leases = make_cache(), []
    fill(cache, 0)
    with ExitStack() as cleanup:
        missing = look_up(cache, [LookupItem(KEYS[0], num_rows)], leases, cleanup)
        assert len(missing) == (num_rows == 2)
        assert (KEYS[0] in cache) == (num_rows != 2)


def test_look_up_shares_a_claim_between_items_with_one_key() -> None:
    cache = make_cache()
    items = [LookupItem(KEYS[0], 1), LookupItem(KEYS[0], 2)]
    with ExitStack() as cleanup:
        assert look_up(cache, items, [], cleanup) == items
        assert items[0].claim is items[1].claim is not None


def test_claim_all_returns_a_claim_per_key_even_if_another_caller_owns_it() -> None:
    cache = make_cache()
    fill(cache, 1)
    items = [LookupItem(None), *(LookupItem(key) for key in KEYS)]
    with cache.claim(KEYS[2]) as owned, ExitStack() as cleanup:
        claim_all(cache, items, cleanup)
        assert items[0].claim is None
        claims = [item.claim for item in items[1:] if item.claim is not None]
        assert [claim.key for claim in claims] == KEYS
        assert [claim.is_mine for claim in claims] == [True, True, False, True]
        assert not claims[2].wait(0)
        owned.release()
        assert claims[2].wait(0)
    assert [cache.claim(key).is_mine for key in KEYS] == [True] * 4


def test_look_up_leases_an_entry_inserted_between_look_up_and_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, leases = make_cache(), []
    items, claim = [LookupItem(KEYS[0]), LookupItem(KEYS[1])], cache.claim

    def insert_and_claim(key: bytes) -> Claim:
        if key not in cache and key == KEYS[0]:
            fill(cache, 0)
        return claim(key)

    monkeypatch.setattr(cache, "claim", insert_and_claim)
    with ExitStack() as cleanup:
        assert look_up(cache, items, leases, cleanup) == [items[1]]
        assert leases == [items[0].rows]
        assert [claim(key).is_mine for key in KEYS[:2]] == [True, False]


def test_look_up_releases_its_claims_before_it_waits_for_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the owner has released its claim, the caller looks up again."""
    cache, leases = make_cache(), []
    items = [LookupItem(KEYS[0]), LookupItem(KEYS[1])]
    owned, waits, done = cache.claim(KEYS[1]), threading.Event(), threading.Event()
    wait = Claim.wait

    def record_wait(claim: Claim, timeout_s: float | None = None) -> bool:
        waits.set()
        return wait(claim, timeout_s)

    def run_look_up() -> None:
        with ExitStack() as cleanup:
            look_up(cache, items, leases, cleanup)
        done.set()

    monkeypatch.setattr(Claim, "wait", record_wait)
    thread = threading.Thread(target=run_look_up)
    thread.start()
    assert waits.wait(60)
    assert cache.claim(KEYS[0]).is_mine
    assert not done.is_set()
    fill(cache, 1)
    owned.release()
    thread.join(60)
    assert done.is_set()
    assert [lease.to_tensor()[0, 0].item() for lease in leases] == [1.0]
    assert items[0].rows is None
