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

from vitcache import Chunk, Claim, EmbeddingCache, Item, Span
from vitcache._native import StepPlan, read_requests
from vitcache.cache.plan_leases import PlanLeases
from vitcache.pipeline.lookup import claim_all, claim_missing, collect_misses

KEYS = [bytes([number]) * 32 for number in range(4)]


@dataclass
class ClaimedItem:
    key: bytes | None
    claim: Claim | None = None


class Step:
    """The plan of one chunk with an item per key; a key of None stands for an item that has no feature."""

    def __init__(self, cache: EmbeddingCache, *items: Item) -> None:
        self.cache = cache
        chunks = [Chunk(items, 0, len(items))]
        requests = read_requests(chunks, Chunk)
        self.plan = StepPlan(chunks, requests, b"", len(items), self.cache.row_width)
        self.leases = PlanLeases(cache, self.plan)
        self.step_items = collect_misses(self.plan, requests, self.leases, ())

    def claim_missing(self, cleanup: ExitStack) -> list[int]:
        missing = claim_missing(self.cache, self.plan, self.leases, self.step_items, cleanup)
        return [step_item.number for step_item in missing]

    def hits(self) -> list[int]:
        return sorted(set(range(len(self.plan))) - set(self.leases.misses()))


def item(token: int, key: bytes | None, num_rows: int = 1, **options: Any) -> Item:
    return Item(None, Span(token, 1), num_rows=num_rows, key=key, **options)


def fill(cache: EmbeddingCache, *numbers: int, num_rows: int = 1) -> None:
    for number in numbers:
        assert cache.put(KEYS[number], torch.full((num_rows, HIDDEN), float(number)))


def test_step_leases_hits_and_claims_misses() -> None:
    cache = make_cache()
    fill(cache, 1)
    given = Item(None, Span(3, 1), rows=torch.zeros(1, HIDDEN))
    step = Step(
        cache, item(0, KEYS[0]), item(1, KEYS[1]), item(2, KEYS[3]), given, item(4, KEYS[2]), item(5, None)
    )
    step.step_items[2].fail(ValueError("wrong"))
    with ExitStack() as cleanup:
        assert step.claim_missing(cleanup) == [0, 4, 5]
        assert [
            number
            for number, step_item in step.step_items.items()
            if step_item.claim is not None and step_item.claim.is_mine
        ] == [0, 4]
        assert step.hits() == [1]
        assert not cache.claim(KEYS[0]).is_mine
    assert cache.claim(KEYS[0]).is_mine
    assert cache.stats().leased_pages == 1  # the caller releases its leases
    step.leases.release()
    assert cache.stats().leased_pages == 0


@pytest.mark.parametrize("num_rows", [1, 2])
def test_step_drops_an_entry_whose_num_rows_differs(num_rows: int) -> None:
    cache = make_cache()
    fill(cache, 0)
    step = Step(cache, item(0, KEYS[0], num_rows))
    assert len(step.leases.misses()) == (num_rows == 2)
    assert (KEYS[0] in cache) == (num_rows != 2)


def test_step_shares_a_claim_between_items_with_one_key() -> None:
    step = Step(make_cache(), item(0, KEYS[0], 1), item(1, KEYS[0], 2))
    with ExitStack() as cleanup:
        assert step.claim_missing(cleanup) == [0, 1]
        assert step.step_items[0].claim is step.step_items[1].claim is not None


def test_claim_all_returns_a_claim_per_key_even_if_another_caller_owns_it() -> None:
    cache = make_cache()
    fill(cache, 1)
    items = [ClaimedItem(None), *(ClaimedItem(key) for key in KEYS)]
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


def test_step_leases_an_entry_inserted_between_look_up_and_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache()
    step, claim = Step(cache, item(0, KEYS[0]), item(1, KEYS[1])), cache.claim

    def insert_and_claim(key: bytes) -> Claim:
        if key not in cache and key == KEYS[0]:
            fill(cache, 0)
        return claim(key)

    monkeypatch.setattr(cache, "claim", insert_and_claim)
    with ExitStack() as cleanup:
        assert step.claim_missing(cleanup) == [1]
        assert step.hits() == [0]
        assert list(step.step_items) == [1]
        assert [claim(key).is_mine for key in KEYS[:2]] == [True, False]


def test_step_releases_its_claims_before_it_waits_for_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the owner has released its claim, the caller looks up again."""
    cache = make_cache()
    step = Step(cache, item(0, KEYS[0]), item(1, KEYS[1]))
    owned, waits, done = cache.claim(KEYS[1]), threading.Event(), threading.Event()
    wait = Claim.wait

    def record_wait(claim: Claim, timeout_s: float | None = None, **options: str) -> bool:
        waits.set()
        return wait(claim, timeout_s, **options)

    def run_look_up() -> None:
        with ExitStack() as cleanup:
            step.claim_missing(cleanup)
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
    assert step.hits() == [1]
    lease = step.leases.lease(1)
    assert lease is not None
    assert lease.to_tensor()[0, 0].item() == 1.0
    assert list(step.step_items) == [0]
