"""A worker with a real `Store` on the CPU, and rows that tell which item they are of."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from vitcache.adapters.vllm.orders import ItemKey, StepOrders, StepReport
from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.store import Store
from vitcache.cache.embedding_cache import EmbeddingCache
from vllm_scene.worker import Broken, Content


def make_rows(identifier: str, num_rows: int, weights: int, width: int) -> Tensor:
    """Return the rows of an item, as an encoder with these weights makes them."""
    seed = zlib.crc32(f"{identifier} {num_rows} {weights}".encode("utf-8", "surrogatepass"))
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


class StoreWorker:
    """One rank: a store, and vLLM's encoder cache, with the calls of `WorkerModel`."""

    def __init__(
        self, settings: Settings, *, waits_after_encoder: bool = False, places_rows: bool = False
    ) -> None:
        self.settings = settings
        self.store = Store(
            settings,
            torch.device("cpu"),
            waits_after_encoder=waits_after_encoder or places_rows,
            places_rows=places_rows,
        )
        self.rows: dict[str, Tensor] = {}
        self.refuses: Callable[[ItemKey], bool] = lambda key: False
        self.num_loads = 0
        self.counts: dict[str, float] = {}
        self._pages = address_of_pages(self.store.cache)

    def begin(self, orders: StepOrders) -> None:
        self.num_loads += len(orders.loads)
        self.orders = orders
        self.store.begin(orders, self.rows)

    def encode(self, identifier: str, content: Content, *, is_v2: bool) -> None:
        """Run the encoder for an item in a batch of three, and save its rows."""
        if is_v2 and identifier in self.rows:
            return
        _, name, num_rows, weights = content
        rows = make_rows(name, num_rows, weights, self.settings.row_width)
        batch = torch.cat([torch.full_like(rows, torch.nan), rows, torch.full_like(rows, torch.nan)])
        self.rows[identifier] = batch[num_rows : 2 * num_rows]
        order = self.orders.saves.get(identifier)
        if order is None or not self.refuses(order.key):
            self.store.save(identifier)
        batch[:num_rows] = batch[2 * num_rows :] = 0

    def place(self, windows: object) -> None:
        """Do nothing: vLLM's merge reads the rows."""

    def end(self) -> StepReport | None:
        report = self.store.end()
        if report is not None:
            for name, value in report.counts.items():
                self.counts[name] = self.counts.get(name, 0) + value
            if report.lost:
                raise Broken(f"step {report.step}: {report.lost} are lost")
        if self.store.cache.stats().rejections:
            raise Broken(f"step {self.orders.step}: the cache has refused rows")
        return report

    def shows(self, identifier: str, expected: tuple[str, int, int]) -> bool:
        """Whether vLLM's encoder cache has (identifier, rows, epoch of the weights), bit for bit."""
        return torch.equal(self.rows[identifier], make_rows(*expected, self.settings.row_width))

    def owns(self, identifier: str) -> bool:
        """Whether vLLM's encoder cache has a view of device pages."""
        return self.rows[identifier].untyped_storage().data_ptr() == self._pages


def address_of_pages(cache: EmbeddingCache) -> int:
    """Return the address of the device pages, by an entry that is dropped again."""
    cache.put(bytes(32), torch.zeros(1, cache.row_width))
    with cache.get(bytes(32)) as lease:
        address: int = lease.pool.untyped_storage().data_ptr()
    cache.discard(bytes(32))
    return address
