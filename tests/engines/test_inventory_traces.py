"""Random traffic with the manager that vLLM runs: 100,000 steps, reports up to 3 steps late."""

from __future__ import annotations

import random

import pytest
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.engine import make_engine, run_traffic
from vllm_scene.requests import make_settings

from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.manager import VitCacheManager

SALTS = (None, None, "a", "b")


@pytest.mark.parametrize("is_v2", [False, True])
@pytest.mark.parametrize("lag", range(4))
def test_no_worker_is_asked_for_rows_that_it_lacks_and_no_tier_exceeds_its_pages(
    lag: int, is_v2: bool
) -> None:
    num_loads = 0
    for seed, (device_pages, host_pages) in enumerate([(8, 0), (8, 6), (8, 30), (20, 7), (12, 100)]):
        is_priority = seed == 3
        inventory = Inventory(make_settings(device_pages, host_pages), shares_saves=not is_priority)
        options = {"lag": lag, "is_v2": is_v2, "is_priority": is_priority}
        engine = make_engine(inventory, VitCacheManager, seed=seed, ranks=1 + seed % 3, **options)
        if seed == 4:
            dice = random.Random(lag)
            engine.workers[0].refuses = lambda key, dice=dice: dice.random() < 0.05
        run_traffic(engine, 2500, salts=SALTS)
        num_loads += engine.workers[0].num_loads
        assert not engine.failed
    assert num_loads > 1000


@pytest.mark.parametrize("lag", range(4))
def test_manager_decides_as_the_plain_model_of_an_encoder_cache_in_pages(lag: int) -> None:
    traces = []
    for make_manager in (VitCacheManager, EncoderCacheModel):
        engine = make_engine(Inventory(make_settings(20, 12)), make_manager, seed=lag, lag=lag)
        run_traffic(engine, 2000, salts=SALTS)
        traces.append((engine.num_encodes, engine.workers[0].num_loads, engine.workers[0].device))
    assert traces[0] == traces[1]
