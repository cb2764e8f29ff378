"""Random traffic: no worker is asked for rows that it lacks, and no tier exceeds its pages."""

from __future__ import annotations

import random

import pytest
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.engine import make_engine, run_traffic
from vllm_scene.fake_disk import RandomDisk
from vllm_scene.requests import make_settings

from vitcache.adapters.vllm.inventory import Inventory
from vitcache.testing import FetchState, inspect_fetches, inspect_inventory


@pytest.mark.parametrize("lag", range(4))
@pytest.mark.parametrize(("device_pages", "host_pages"), [(8, 0), (8, 6), (20, 7), (12, 100)])
@pytest.mark.parametrize("is_v2", [False, True])
def test_random_traffic_keeps_inventory_and_workers_together(
    lag: int, device_pages: int, host_pages: int, is_v2: bool
) -> None:
    inventory = Inventory(make_settings(device_pages, host_pages))
    engine = make_engine(inventory, EncoderCacheModel, seed=lag, ranks=2, lag=lag, is_v2=is_v2)
    run_traffic(engine, 600, salts=(None, None, "a", "b"))
    assert engine.num_encodes > 50
    assert (engine.workers[0].num_loads > 10) == (host_pages > 0)
    assert not engine.failed
    assert engine.workers[0].device == engine.workers[1].device
    assert engine.workers[0].host == engine.workers[1].host


@pytest.mark.parametrize("lag", range(4))
def test_random_traffic_with_saves_that_a_rank_refuses_loads_no_missing_rows(lag: int) -> None:
    inventory = Inventory(make_settings(8, 30))
    engine = make_engine(inventory, EncoderCacheModel, seed=lag, ranks=3, lag=lag)
    dice = random.Random(lag)
    for worker in engine.workers[1:]:
        worker.refuses = lambda key: dice.random() < 0.1
    run_traffic(engine, 2000)
    assert inventory.counts.take()["refusals"] > 20
    assert engine.workers[0].num_loads > 20


@pytest.mark.parametrize("lag", range(4))
def test_random_traffic_with_requests_that_their_own_pass_preempts_misses_no_rows(lag: int) -> None:
    inventory = Inventory(make_settings(12, 20), shares_saves=False)
    engine = make_engine(inventory, EncoderCacheModel, seed=lag, lag=lag, is_priority=True)
    run_traffic(engine, 2000)
    counts = inventory.counts.take()
    assert counts["encodes"] == engine.num_encodes
    assert "refusals" not in counts
    assert engine.workers[0].num_loads > 10


@pytest.mark.parametrize("lag", range(3))
def test_nothing_is_kept_about_requests_that_ended(lag: int) -> None:
    inventory = Inventory(make_settings(8, 30))
    engine = make_engine(inventory, EncoderCacheModel, seed=lag, lag=lag)
    run_traffic(engine, 300)
    for request in list(engine.running):
        engine.finish(request)
    for _ in range(lag + 1):
        engine.step()
    state = inspect_inventory(inventory)
    assert state.requests == set()
    assert state.orders_in_flight == []
    assert state.num_waiting == 0
    assert state.resident == set(engine.manager.pages)
    assert state.host_pages == state.entry_pages <= 30


@pytest.mark.parametrize("lag", range(4))
@pytest.mark.parametrize(("host_pages", "fetch_pages"), [(6, 5), (20, 16), (100, 40)])
@pytest.mark.parametrize("is_v2", [False, True])
def test_random_traffic_over_a_random_disk_fetches_no_entry_of_the_inventory_away(
    lag: int, host_pages: int, fetch_pages: int, is_v2: bool
) -> None:
    inventory = Inventory(make_settings(12, host_pages))
    engine = make_engine(inventory, EncoderCacheModel, seed=lag, lag=lag, is_v2=is_v2)
    disk = RandomDisk(engine.workers[0], fetch_pages, lag)
    inventory.fetches = disk.fetches(inventory.counts)
    run_traffic(engine, 1500, num_items=60, salts=(None, None, "a", "b"))
    counts = inventory.counts.take()
    assert counts["hits_lower"] > 3
    assert counts["tier_waits"] > 50
    assert not engine.failed


@pytest.mark.parametrize("lag", range(3))
def test_nothing_is_kept_about_fetches_of_requests_that_ended(lag: int) -> None:
    inventory = Inventory(make_settings(8, 30))
    engine = make_engine(inventory, EncoderCacheModel, seed=lag, lag=lag)
    disk = RandomDisk(engine.workers[0], 20, lag)
    inventory.fetches = disk.fetches(inventory.counts)
    run_traffic(engine, 300)
    for request in list(engine.running):
        engine.finish(request)
    disk.end_all()
    for _ in range(2):  # in the second pass, its rows are there
        engine.add_request([("last", 4)])
        while engine.running:
            engine.step()
        disk.end_all()
    assert inspect_fetches(inventory.fetches) == FetchState(set(), set(), 0, 0)
