"""After each step of random traffic, a worker has exactly the entries of the scheduler's inventory."""

from __future__ import annotations

import random

import pytest
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.engine import Engine, run_traffic
from vllm_scene.requests import make_settings
from vllm_scene.store_worker import StoreWorker

from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.orders import ItemKey
from vitcache.testing import inspect

Tiers = dict[ItemKey, tuple[bool, bool]]  # whether an entry is in the device tier, and in the host tier


class ComparingEngine(Engine):
    """Compares the first worker with the inventory after each step without further orders."""

    num_compared = 0

    def step(self) -> None:
        super().step()
        orders = self.inventory._orders
        if orders.demotions or orders.host_drops or orders.loads or orders.saves:
            return  # of a pass without tokens, so the workers have not executed them
        entries = self.inventory._entries
        assert self.tiers([*entries]) == {
            key: (each.on_device, each.on_host) for key, each in entries.items()
        }
        store = self.workers[0].store
        dropped = [key for key in orders.drops if key not in entries and store._digest(key) in store.cache]
        assert len(store.cache) == len(entries) + len(dropped)
        self.num_compared += 1

    def tiers(self, keys: list[ItemKey]) -> Tiers:
        store = self.workers[0].store
        ledger = inspect(store.cache).ledger
        return {
            key: (
                ledger.find_entry(store._digest(key), "device") is not None,
                ledger.find_entry(store._digest(key), "host") is not None,
            )
            for key in keys
        }


@pytest.mark.parametrize("refused", [0.0, 0.1])
@pytest.mark.parametrize(("device_pages", "host_pages"), [(8, 0), (8, 6), (12, 40)])
def test_worker_has_the_entries_of_the_inventory_in_the_same_tiers_after_each_step(
    device_pages: int, host_pages: int, refused: float
) -> None:
    inventory = Inventory(make_settings(device_pages, host_pages))
    workers = [StoreWorker(inventory.settings) for _ in range(2)]
    dice = random.Random(2)
    workers[1].refuses = lambda key: dice.random() < refused
    engine = ComparingEngine(
        inventory, EncoderCacheModel(inventory), workers, random.Random(1), lag=0, is_v2=True
    )
    run_traffic(engine, 300, salts=(None, "a"))
    assert engine.num_compared > 250
