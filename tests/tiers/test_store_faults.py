"""A real Mooncake store on this machine whose master and nodes are stopped and killed while caches use it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hang_guard import Running, run_in_child
from tiers.cache_process import cache_process
from tiers.scene import Pages, name_of, random_rows, rows_in, rows_of, store_rows, transfer_of
from tiers.shared_store import wait_until
from tiers.tier_cache import LONG, Clock, is_right, key_of, put, stats_of, tier_cache

from vitcache.bench.harness.store_cluster import StoreCluster, store_cluster
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.tiers import FetchOutcome, MooncakeTier, Transfer
from vitcache.tiers.mooncake_client import MooncakeError
from vitcache.tiers.mooncake_objects import object_key

HIT, MISS, DAMAGED, UNSAFE = FetchOutcome.HIT, FetchOutcome.MISS, FetchOutcome.DAMAGED, FetchOutcome.UNSAFE
NUMBERS = range(1, 9)
PAGES = {"device_pages": 64, "host_pages": 64}


@pytest.fixture
def cluster() -> Iterator[StoreCluster]:
    """A store of one node, which a test may stop or kill."""
    with store_cluster(1, client_ttl=2, put_start_discard_timeout_sec=2) as made:
        yield made


def open_tier(cluster: StoreCluster, **options: Any) -> MooncakeTier:
    tier = MooncakeTier(cluster.address, worth=None, **options)
    tier.open()
    return tier


def cache_of(cluster: StoreCluster, **options: Any) -> EmbeddingCache:
    return tier_cache(MooncakeTier(cluster.address, worth=None), **(PAGES | options))


def fill(cluster: StoreCluster, **options: Any) -> None:
    with cache_of(cluster, **options) as cache:
        put(cache, *NUMBERS)
        assert stats_of(cache).stored == len(NUMBERS)


def found(cache: EmbeddingCache, **options: Any) -> list[int]:
    cache.fetch([key_of(number) for number in NUMBERS], 2, **options)
    return [number for number in NUMBERS if is_right(cache, number)]


def check_next_step(cache: EmbeddingCache) -> None:
    """After a fault, the cache takes new rows and gives them back, and has all its pages."""
    for number in NUMBERS:
        put_one(cache, 100 + number)
    assert all(is_right(cache, 100 + number) for number in NUMBERS)
    cache.check_integrity()


def stores_again(cache: EmbeddingCache, clock: Clock) -> bool:
    """After the back-off of the breaker, store an entry as its probe."""
    clock.advance(60)
    before = stats_of(cache).stored
    cache.discard(key_of(200))
    put_one(cache, 200)
    assert cache.flush(LONG)
    return stats_of(cache).stored > before and not stats_of(cache).is_open


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, and wait until none of its threads runs."""
    process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")


def put_one(cache: EmbeddingCache, number: int) -> None:
    assert cache.put(key_of(number), torch.full((2, 4), float(number)))


def test_node_that_stops_in_a_transfer_writes_nothing_after_close(cluster: StoreCluster) -> None:
    names = [name_of(key, 1, 8 << 20) for key in range(8)]
    tier = open_tier(cluster)
    try:
        assert store_rows(tier, names) == [True] * 8
        node = cluster.nodes[0]
        for _ in range(20):  # until the node is stopped in the middle
            fetches = [transfer_of(name, num_parts=8) for name in names]
            first, last = fetches[0].parts[0], fetches[-1].parts[-1]
            running = Running(partial(tier.fetch, fetches))
            wait_until(lambda first=first: first[:64].min() != 0xFF)
            stop(node)
            is_in_the_middle = last[-64:].min() == 0xFF
            if is_in_the_middle:
                break
            node.send_signal(signal.SIGCONT)
            running.results()
        assert is_in_the_middle
        (outcomes,) = running.results()
        assert UNSAFE in outcomes
        for fetch, outcome in zip(fetches, outcomes, strict=True):
            if outcome is HIT:
                assert np.array_equal(rows_in(fetch), rows_of(fetch.name))
    finally:
        tier.close()
    before = [rows_in(fetch).copy() for fetch in fetches]
    node.send_signal(signal.SIGCONT)
    tier.open()
    try:
        new = name_of(9)
        wait_until(lambda: store_rows(tier, [new]) == [True])  # the node writes again
        assert tier.fetch([transfer_of(new)]) == [HIT]
        assert all(np.array_equal(rows_in(fetch), kept) for fetch, kept in zip(fetches, before, strict=True))
    finally:
        tier.close()


def test_stopped_node_costs_the_deadline_and_no_page(cluster: StoreCluster) -> None:
    fill(cluster)
    clock = Clock()
    with cache_of(cluster, clock=clock) as cache:
        assert cache.fetch([key_of(1)], 2) == [True]  # connects to the node; the first contact has no limit
        stop(cluster.nodes[0])
        start = time.perf_counter()
        assert found(cache, timeout_s=0.05) == [1]
        assert time.perf_counter() - start < 1.0  # the node is found to be silent after 1 s
        check_next_step(cache)
        wait_until(lambda: stats_of(cache).failures > 0 and stats_of(cache).quarantined_bytes == 0)
        assert stats_of(cache).is_open
        assert found(cache) == [1]  # at once
        cluster.nodes[0].send_signal(signal.SIGCONT)
        wait_until(lambda: stores_again(cache, clock))
        check_next_step(cache)


def test_killed_node_costs_its_entries_only(cluster: StoreCluster) -> None:
    cluster.add_node(256 << 20)
    clock = Clock()
    names = [name_of(key, 1, 1 << 16) for key in range(40)]
    tier = open_tier(cluster)
    assert store_rows(tier, names) == [True] * 40
    fill(cluster)
    cluster.nodes[0].kill()
    cluster.nodes[0].wait()
    outcomes = [tier.fetch([transfer_of(name)])[0] for name in names]
    assert {HIT, UNSAFE} <= set(outcomes)  # the other node's, and those of which the transfer broke
    tier.close()  # the engine's owner does it after UNSAFE
    tier.open()
    wait_until(lambda: tier.exists(names) == [outcome is HIT for outcome in outcomes])  # after `client_ttl`
    fetches = [transfer_of(name) for name in names]
    left = tier.fetch(fetches)
    assert left == [HIT if outcome is HIT else MISS for outcome in outcomes]
    for fetch, outcome in zip(fetches, left, strict=True):
        assert outcome is MISS or np.array_equal(rows_in(fetch), rows_of(fetch.name))
    assert store_rows(tier, names) == [True] * 40
    tier.close()
    with cache_of(cluster, clock=clock) as cache:
        found(cache)  # each row that is found is right
        check_next_step(cache)


def test_killed_master_costs_all_entries_and_a_new_one_is_used(cluster: StoreCluster) -> None:
    fill(cluster)
    clock = Clock()
    with cache_of(cluster, clock=clock) as cache:
        assert found(cache) == list(NUMBERS)
        cluster.master.kill()
        cluster.master.wait()
        assert not any(cache.fetch([key_of(50), key_of(51)], 2))
        wait_until(lambda: stats_of(cache).is_open)
        check_next_step(cache)
        cluster.restart_master()
        wait_until(lambda: stores_again(cache, clock))
        check_next_step(cache)
    with cache_of(cluster) as cache:
        assert found(cache) == []  # a master keeps the list of all objects in its memory
        put(cache, *NUMBERS)
    with cache_of(cluster) as cache:
        assert found(cache) == list(NUMBERS)


def test_stopped_master_is_an_error_within_its_time_limit(cluster: StoreCluster) -> None:
    tier = open_tier(cluster)
    store_rows(tier, [name_of(1)])
    stop(cluster.master)
    with pytest.raises(MooncakeError, match=r"look up objects: code -901 \(the master's answer is late\)"):
        tier.exists([name_of(1)])
    assert tier.fetch([transfer_of(name_of(1))]) == [UNSAFE]
    cluster.master.send_signal(signal.SIGCONT)
    wait_until(lambda: tier.fetch([transfer_of(name_of(1))]) == [HIT])
    tier.close()


def test_address_where_no_master_is_is_an_error_at_once() -> None:
    tier = MooncakeTier("127.0.0.1:1")
    with pytest.raises(ConnectionError, match=r"no Mooncake master answers at 127\.0\.0\.1:1"):
        tier.open()
    tier.close()


def test_object_with_a_flipped_byte_is_damaged_and_removed(store_tier: MooncakeTier) -> None:
    name = name_of(1, 40, 5000)
    raw = store_tier._client._store
    for size in (100, 200_000):  # gathered, and in parts
        name = name_of(1, 1, size)
        source = Pages(size, 1 << 17, seed=1)
        source.fill(random_rows(size))
        assert store_tier.store([Transfer(name, source.parts)]) == [True]
        content = bytearray(raw.get(object_key(name)))
        for at in (0, 8, 4095, 4096, len(content) - 1):
            content[at] ^= 1
            assert raw.upsert(object_key(name), bytes(content)) == 0
            target = Pages(size, 1 << 17, seed=2)
            assert store_tier.fetch([Transfer(name, target.parts)]) == [DAMAGED]
            assert store_tier.exists([name]) == [False]
            assert store_tier.fetch([Transfer(name, target.parts)]) == [MISS]
            content[at] ^= 1
        assert store_tier.store([Transfer(name, source.parts)]) == [True]
        target = Pages(size, 1 << 17, seed=2)
        assert store_tier.fetch([Transfer(name, target.parts)]) == [HIT]
        assert np.array_equal(target.rows(), random_rows(size))


def test_full_store_evicts_and_refuses_an_object_larger_than_a_node(cluster: StoreCluster) -> None:
    tier = open_tier(cluster)
    large = name_of(99, 1, 300 << 20)
    memory = np.zeros(300 << 20, np.uint8)
    assert tier.store([Transfer(large, [memory])]) == [False]
    names = [name_of(key, 1, 16 << 20) for key in range(24)]
    stored = [store_rows(tier, [name])[0] for name in names]
    assert any(stored)
    for name in names:
        fetch = transfer_of(name)
        if tier.fetch([fetch]) == [HIT]:
            assert np.array_equal(rows_in(fetch), rows_of(name))
    assert tier.metrics()["code -200"] > 0
    tier.close()


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from tiers.scene import name_of
from vitcache.tiers import MooncakeTier
tier = MooncakeTier(sys.argv[1], single_flight=True)
tier.open()
print(tier.claim([name_of(1), name_of(2)], 60.0), flush=True)
input()
"""


def test_claim_of_a_killed_process_lapses_and_its_entry_is_no_hit(cluster: StoreCluster) -> None:
    support = str(Path(__file__).parents[1] / "support")
    command = [sys.executable, "-c", WRITER, cluster.address, support]
    claimant = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    plain, single = open_tier(cluster), open_tier(cluster, single_flight=True)
    try:
        assert claimant.stdout
        assert claimant.stdout.readline().strip() == "[True, True]"
        assert single.claim([name_of(1), name_of(3)], 60.0) == [False, True]
        claimant.kill()
        claimant.communicate()
        assert plain.exists([name_of(1)]) == [False]
        assert plain.fetch([transfer_of(name_of(1))]) == [MISS]
        # The store answers that a put has succeeded, and stores nothing.
        assert store_rows(plain, [name_of(1)]) == [plain.exists([name_of(1)])[0]]
        wait_until(lambda: single.claim([name_of(2)], 60.0) == [True])
        assert store_rows(single, [name_of(2), name_of(3)]) == [True, True]
        wait_until(lambda: store_rows(plain, [name_of(1)]) == [True])
        for number in (1, 2, 3):
            fetch = transfer_of(name_of(number))
            assert plain.fetch([fetch]) == [HIT]
            assert np.array_equal(rows_in(fetch), rows_of(name_of(number)))
    finally:
        claimant.kill()
        claimant.communicate()
        plain.close()
        single.close()


def test_claims_that_are_not_used_end_by_their_time_and_by_close(cluster: StoreCluster) -> None:
    first, second = open_tier(cluster, single_flight=True), open_tier(cluster, single_flight=True)
    try:
        assert first.claim([name_of(1), name_of(2)], 0.0) == [True, True]
        assert first.claim([name_of(3)], 60.0) == [True]  # ends the two, whose time is over
        assert second.claim([name_of(1)], 60.0) == [True]
        assert second.claim([name_of(3)], 60.0) == [False]
        first.close()
        assert second.claim([name_of(3)], 60.0) == [True]
        assert store_rows(second, [name_of(3)]) == [True]
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize(
    "other", [{"weights_name": "new"}, {"weights_name": b"weights"}, {"dtype": torch.bfloat16}]
)
def test_processes_share_rows_of_the_same_weights_tenant_and_dtype_only(
    store_tier: MooncakeTier, other: dict[str, Any]
) -> None:
    address = store_tier._address
    with cache_process(address) as process:
        assert process.do("put", *NUMBERS) == len(NUMBERS)
        with tier_cache(MooncakeTier(address, worth=None), **PAGES) as cache:
            assert found(cache, tenant="other") == []
            assert found(cache) == list(NUMBERS)
        with tier_cache(MooncakeTier(address, worth=None), **(PAGES | other)) as cache:
            assert not any(cache.fetch([key_of(number) for number in NUMBERS], 2))
        assert process.do("call", "forget", 1) == 2
        process.do("call", "advance_epoch")
        with tier_cache(MooncakeTier(address, worth=None), **PAGES) as cache:
            assert found(cache) == []


def test_process_ends_while_a_call_of_the_engine_hangs(cluster: StoreCluster) -> None:
    fill(cluster)
    with cache_process(cluster.address) as process:
        stop(cluster.nodes[0])
        assert process.do("found", *NUMBERS, timeout_s=0.01) == []
        process.process.communicate(timeout=60)  # the script ends with its input
        assert process.process.returncode == 0


def test_forked_child_is_refused_and_leaves_the_store_of_its_parent_alone(store_tier: MooncakeTier) -> None:
    store_rows(store_tier, [name_of(1)])
    other = MooncakeTier(store_tier._address)

    def check() -> None:
        with pytest.raises(RuntimeError, match=f"open in process {os.getppid()}, not in this one"):
            store_tier.exists([name_of(1)])
        store_tier.close()
        for tier in (store_tier, other):
            with pytest.raises(
                RuntimeError, match=rf"process {os.getppid()} had used a Mooncake store when it"
            ):
                tier.open()
        assert store_tier._client is None
        gc.collect()  # the client of the parent would end the child if it was freed

    assert run_in_child(check) == 0
    fetch = transfer_of(name_of(1))
    assert store_tier.fetch([fetch]) == [HIT]
    assert np.array_equal(rows_in(fetch), rows_of(name_of(1)))


def test_numbers_of_generations_use_the_same_memory_again(store_tier: MooncakeTier) -> None:
    weights = b"w" * 32
    store_tier.revoke(weights)
    client = store_tier._client
    assert client is not None
    before = len(client._blocks)
    assert len({store_tier.revoke(weights) for _ in range(20)}) == 20
    assert len(client._blocks) == before
