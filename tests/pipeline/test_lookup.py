"""The one loop that leases and claims: for steps, prefetches, and the calls of an attached model."""

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
class Wanted:
    key: bytes | None
    num_rows: int | None = None
    rows: Any = None
    claim: Claim | None = None
    error: Exception | None = None


def fill(cache: EmbeddingCache, *numbers: int, num_rows: int = 1) -> None:
    for number in numbers:
        assert cache.put(KEYS[number], torch.full((num_rows, HIDDEN), float(number)))


def test_what_is_there_is_leased_and_the_rest_is_the_callers_to_encode() -> None:
    cache, leases = make_cache(), []
    fill(cache, 1)
    failed, given = Wanted(KEYS[3], error=ValueError("wrong")), Wanted(None, rows=torch.zeros(1, HIDDEN))
    wanted = [Wanted(KEYS[0]), Wanted(KEYS[1]), failed, given, Wanted(KEYS[2]), Wanted(None)]
    with ExitStack() as held:
        missing = look_up(cache, wanted, leases, held)
        assert missing == [wanted[0], wanted[4], wanted[5]]
        assert [one.claim is not None and one.claim.is_mine for one in wanted] == [
            True,
            False,
            False,
            False,
            True,
            False,
        ]
        assert leases == [wanted[1].rows]
        assert isinstance(leases[0], Lease)
        assert not cache.claim(KEYS[0]).is_mine
    assert cache.claim(KEYS[0]).is_mine
    assert not leases[0].released  # they are the caller's


@pytest.mark.parametrize("num_rows", [None, 1, 2])
def test_an_entry_of_another_length_is_missing_where_a_length_is_wanted(num_rows: int | None) -> None:
    cache, leases = make_cache(), []
    fill(cache, 0)
    with ExitStack() as held:
        missing = look_up(cache, [Wanted(KEYS[0], num_rows)], leases, held)
        assert len(missing) == (num_rows == 2)
        assert (KEYS[0] in cache) == (num_rows != 2)


def test_two_of_one_key_and_other_lengths_share_a_claim() -> None:
    cache = make_cache()
    wanted = [Wanted(KEYS[0], 1), Wanted(KEYS[0], 2)]
    with ExitStack() as held:
        assert look_up(cache, wanted, [], held) == wanted
        assert wanted[0].claim is wanted[1].claim is not None


def test_who_may_not_wait_has_a_claim_of_each_be_it_anothers() -> None:
    cache = make_cache()
    fill(cache, 1)
    wanted = [Wanted(None), *(Wanted(key) for key in KEYS)]
    with cache.claim(KEYS[2]) as other, ExitStack() as held:
        claim_all(cache, wanted, held)
        assert wanted[0].claim is None
        claims = [one.claim for one in wanted[1:] if one.claim is not None]
        assert [claim.key for claim in claims] == KEYS
        assert [claim.is_mine for claim in claims] == [True, True, False, True]
        assert not claims[2].wait(0)
        other.release()
        assert claims[2].wait(0)
    assert [cache.claim(key).is_mine for key in KEYS] == [True] * 4


def test_what_was_entered_between_look_up_and_claim_is_leased(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, leases = make_cache(), []
    wanted, claim = [Wanted(KEYS[0]), Wanted(KEYS[1])], cache.claim

    def enter_and_claim(key: bytes) -> Claim:
        if key not in cache and key == KEYS[0]:
            fill(cache, 0)
        return claim(key)

    monkeypatch.setattr(cache, "claim", enter_and_claim)
    with ExitStack() as held:
        assert look_up(cache, wanted, leases, held) == [wanted[1]]
        assert leases == [wanted[0].rows]
        assert [claim(key).is_mine for key in KEYS[:2]] == [True, False]


def test_nobody_waits_with_a_claim_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is another's makes the caller give all back, and look up again once that one is over."""
    cache, leases = make_cache(), []
    wanted = [Wanted(KEYS[0]), Wanted(KEYS[1])]
    first, waits, done = cache.claim(KEYS[1]), threading.Event(), threading.Event()
    wait = Claim.wait

    def note(claim: Claim, timeout_s: float | None = None) -> bool:
        waits.set()
        return wait(claim, timeout_s)

    def serve() -> None:
        with ExitStack() as held:
            look_up(cache, wanted, leases, held)
        done.set()

    monkeypatch.setattr(Claim, "wait", note)
    thread = threading.Thread(target=serve)
    thread.start()
    assert waits.wait(60)
    assert cache.claim(KEYS[0]).is_mine
    assert not done.is_set()
    fill(cache, 1)
    first.release()
    thread.join(60)
    assert done.is_set()
    assert [lease.to_tensor()[0, 0].item() for lease in leases] == [1.0]
    assert wanted[0].rows is None
