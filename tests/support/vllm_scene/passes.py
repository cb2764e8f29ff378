"""Passes of the scheduler, one request at a time, over an inventory and a model of vLLM's encoder cache."""

from __future__ import annotations

from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.orders import ItemKey, StepOrders, StepReport
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.requests import Request, make_request, make_settings


class Pass:
    """One pass of the scheduler over inventory and an encoder cache."""

    def __init__(self, device_pages: int = 8, host_pages: int = 8, *, shares_saves: bool = True) -> None:
        self.inventory = Inventory(make_settings(device_pages, host_pages), shares_saves=shares_saves)
        self.manager = EncoderCacheModel(self.inventory)
        self.number = 0

    def ask(self, name: str, num_rows: int = 4, salt: str | None = None) -> tuple[Request, str]:
        """Schedule a request with one item. Return it, and how it gets its rows."""
        self.number += 1
        request = make_request(f"r{self.number}", [(name, num_rows)], salt)
        if not self.inventory.admit(request, 0):
            return request, "wait"
        if self.manager.check_and_update_cache(request, 0):
            return request, "cached"
        assert self.manager.can_allocate(request, 0, 1000, 0)
        how = "load" if self.inventory.has(name) else "encode"
        self.manager.allocate(request, 0)
        self.inventory.allocate(request, 0)
        return request, how

    def close(self) -> StepOrders:
        orders = self.inventory.close_step(self.manager.get_freed_mm_hashes(), True)
        assert orders is not None
        return orders

    def run(self, name: str, num_rows: int = 4, salt: str | None = None) -> tuple[str, StepOrders]:
        """Schedule, execute, report and finish a request."""
        request, how = self.ask(name, num_rows, salt)
        orders = self.close()
        self.inventory.report(done(orders))
        self.manager.free(request)
        self.inventory.finish(request)
        return how, orders


def done(orders: StepOrders) -> StepReport:
    """Return the report of a worker that has saved everything."""
    return StepReport(orders.step, orders.epoch, {order.key for order in orders.saves.values()})


def key(name: str, salt: str = "") -> ItemKey:
    """Return the key of an item in the inventory."""
    return ItemKey(salt, name)
