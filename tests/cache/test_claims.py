"""Claims: one of the callers that miss a key encodes it. If it fails, another caller does."""

from __future__ import annotations

import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from caches import make_cache
from hang_guard import Running, wait_until
from pipeline_scene import HIDDEN

from vitcache._native import Turn
from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.testing import inspect

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def cache() -> EmbeddingCache:
    return make_cache()


def test_first_claim_is_the_owners_and_a_second_claim_waits(cache: EmbeddingCache) -> None:
    first, second = cache.claim(KEY), cache.claim(KEY)
    assert (first.is_mine, second.is_mine, inspect(cache).num_claims) == (True, False, 1)
    assert not second.wait(timeout_s=0)
    first.release()
    assert second.wait()
    assert inspect(cache).num_claims == 0


def test_second_release_does_not_release_the_next_owners_claim(cache: EmbeddingCache) -> None:
    first = cache.claim(KEY)
    first.release()
    second = cache.claim(KEY)
    first.release()
    del first
    assert second.is_mine
    assert not cache.claim(KEY).is_mine


def test_garbage_collected_claim_is_released(cache: EmbeddingCache) -> None:
    first = cache.claim(KEY)
    second = cache.claim(KEY)
    del first
    assert second.wait(timeout_s=0)
    assert cache.claim(KEY).is_mine


def test_claim_of_a_closed_cache_is_released(cache: EmbeddingCache) -> None:
    first, second = cache.claim(KEY), cache.claim(KEY)
    cache.close()
    assert first.is_mine
    first.release()
    assert second.wait(timeout_s=0)
    assert inspect(cache).num_claims == 0


def test_wait_on_an_owned_claim_raises(cache: EmbeddingCache) -> None:
    with cache.claim(KEY) as claim, pytest.raises(RuntimeError, match="the owner must not wait"):
        claim.wait()


def test_claims_of_different_epochs_have_different_owners() -> None:
    cache = make_cache()
    old = cache.claim(KEY)
    cache.advance_epoch()
    assert old.is_mine
    assert cache.claim(KEY).is_mine


@pytest.mark.parametrize("is_released", [False, True])
def test_claim_put_and_reserve_insert_rows_of_the_claims_epoch(is_released: bool) -> None:
    cache, rows = make_cache(), torch.ones(3, HIDDEN)
    claim = cache.claim(KEY)
    assert (claim.key, claim.epoch) == (KEY, 0)
    if is_released:
        claim.release()
    assert claim.put(rows)
    assert KEY in cache
    cache.advance_epoch()
    assert not claim.put(rows)
    assert claim.reserve(3) is None
    with cache.claim(KEY) as later, later.reserve(3, encode_ms=2.0) as reservation:
        reservation.write(rows)
        assert later.epoch == 1
        assert reservation.commit()
    with cache.get(KEY):
        assert cache.stats().device.saved_ms == 2.0


def test_cache_with_a_released_claim_is_freed_without_a_cycle() -> None:
    cache = make_cache()
    cache_ref = weakref.ref(cache)
    with cache.claim(KEY):
        pass
    del cache
    assert cache_ref() is None


@pytest.mark.parametrize("failures", [0, 1, 5])
def test_threads_that_miss_a_key_encode_once_plus_once_per_failed_owner(failures: int) -> None:
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
                assert claim.put(torch.ones(3, HIDDEN))

    with ThreadPoolExecutor(8) as pool:
        served = [future.result(60) for future in [pool.submit(serve) for _ in range(8)]]
    assert len(encodes) == failures + 1
    assert served.count(False) == failures


def test_wait_for_a_claim_of_the_same_thread_raises_and_a_limited_wait_ends(cache: EmbeddingCache) -> None:
    with cache.claim(KEY), cache.claim(KEY) as second:
        with pytest.raises(RuntimeError, match=r"^embed was called from inside .* encoding this item"):
            second.wait(call="embed")
        assert not second.wait(0.001)


def test_error_of_an_endless_wait_names_the_call_that_encodes(cache: EmbeddingCache) -> None:
    turn = Turn("the encoder")
    with cache.claim(KEY), turn.of("VisionPipeline.embed"), cache.claim(KEY) as second:
        expected = "^Claim.wait was called from inside VisionPipeline.embed, which is encoding this item: "
        with pytest.raises(RuntimeError, match=expected):
            second.wait()


def test_two_threads_that_wait_for_each_others_claims_raise_one_error(cache: EmbeddingCache) -> None:
    barrier = threading.Barrier(2)

    def serve(own: bytes, other: bytes) -> None:
        with cache.claim(own) as claim:
            assert claim.is_mine
            barrier.wait()
            cache.claim(other).wait()

    results = Running(lambda: serve(KEY, OTHER), lambda: serve(OTHER, KEY)).results()
    [error] = [result for result in results if result is not None]
    assert isinstance(error, RuntimeError)
    assert "would never return" in str(error)
    assert inspect(cache).num_claims == 0


def test_thread_waits_for_a_claim_that_another_thread_took_over(cache: EmbeddingCache) -> None:
    claim, second = cache.claim(KEY), cache.claim(KEY)
    taken = threading.Event()

    def encode() -> None:
        with claim:
            taken.set()
            wait_until(lambda: inspect(cache).num_waiting(second))
            assert claim.put(torch.ones(3, HIDDEN))

    encoder = Running(encode)
    assert taken.wait(60)
    assert second.wait()
    assert encoder.results() == [None]
    assert KEY in cache


def test_interrupted_wait_raises_and_leaves_the_claim_to_its_owner(cache: EmbeddingCache) -> None:
    leave, main = threading.Event(), threading.get_ident()
    claims: list[Claim] = []

    def hold() -> None:
        with cache.claim(KEY) as claim:
            claims.append(claim)
            wait_until(lambda: inspect(cache).num_waiting(claim))
            signal.pthread_kill(main, signal.SIGINT)
            leave.wait(60)

    owner = Running(hold)
    wait_until(lambda: claims)
    second = cache.claim(KEY)
    with pytest.raises(KeyboardInterrupt):
        second.wait()
    assert not second.wait(0)
    assert inspect(cache).num_claims == 1
    leave.set()
    assert owner.results() == [None]
    assert second.wait()
