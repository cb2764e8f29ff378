"""Of those who miss one key, one encodes; when it fails, the next one does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pipeline_scene import HIDDEN, make_cache

from vitcache.cache.claims import Claims

KEY = b"k" * 32


def test_the_first_claim_is_the_callers_and_the_next_is_not() -> None:
    claims = Claims()
    first, second = claims.claim(KEY), claims.claim(KEY)
    assert (first.is_mine, second.is_mine, len(claims)) == (True, False, 1)
    assert not second.wait(timeout_s=0)
    first.release()
    assert second.wait()
    assert len(claims) == 0


def test_a_second_release_gives_back_nothing_of_another() -> None:
    claims = Claims()
    first = claims.claim(KEY)
    first.release()
    second = claims.claim(KEY)
    first.release()
    del first
    assert second.is_mine
    assert not claims.claim(KEY).is_mine


def test_a_forgotten_claim_is_given_back() -> None:
    claims = Claims()
    first = claims.claim(KEY)
    second = claims.claim(KEY)
    del first
    assert second.wait(timeout_s=0)
    assert claims.claim(KEY).is_mine


def test_nobody_waits_for_a_claim_of_his_own() -> None:
    with Claims().claim(KEY) as claim, pytest.raises(RuntimeError, match="the caller's own"):
        claim.wait()


def test_a_claim_of_an_earlier_epoch_stops_nobody() -> None:
    cache = make_cache()
    old = cache.claim(KEY)
    cache.advance_epoch()
    assert old.is_mine
    assert cache.claim(KEY).is_mine


@pytest.mark.parametrize("failures", [0, 1, 5])
def test_threads_encode_once_and_hand_over_when_a_producer_fails(failures: int) -> None:
    cache, encodes, lock = make_cache(), [], threading.Lock()
    barrier = threading.Barrier(8)

    def serve() -> bool:
        barrier.wait()
        while True:
            lease = cache.get(KEY)
            if lease is not None:
                lease.release()
                return True
            claim = cache.claim(KEY)
            if not claim.is_mine:
                claim.wait()
                continue
            with claim:
                if KEY in cache:
                    continue
                with lock:
                    encodes.append(1)
                    fails = len(encodes) <= failures
                if fails:
                    return False
                cache.put(KEY, torch.ones(3, HIDDEN))

    with ThreadPoolExecutor(8) as pool:
        served = [future.result(60) for future in [pool.submit(serve) for _ in range(8)]]
    assert len(encodes) == failures + 1
    assert served.count(False) == failures
