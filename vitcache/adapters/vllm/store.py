"""The worker's side: an `EmbeddingCache` that executes the scheduler's orders."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from vitcache.adapters.vllm.counts import Counts
from vitcache.adapters.vllm.device_rows import DeviceRows, EncoderCache
from vitcache.adapters.vllm.orders import ItemKey, LoadOrder, SaveOrder, StepOrders, StepReport
from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.step_times import StepTimes
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.keys.identifiers import key_from_id
from vitcache.pages.lease import Lease
from vitcache.rows import DTYPE_NAMES, DTYPES

logger = logging.getLogger("vitcache.adapters.vllm")


class Store:
    """The rows of one worker, in device pages and pinned host memory.

    Parameters
    ----------
    settings
        Sizes, dtype and namespace.
    device
        The worker's device.
    waits_after_encoder
        Whether `save` is called between the encoder and the reads of vLLM's encoder cache, as Model Runner V1
        does. Then the encoder's stream waits for loads there, and not before the encoder runs.

    Attributes
    ----------
    cache
        The cache. It is allocated here, all of it.

    Notes
    -----
    Only the worker's thread may call. Rows are read and written on the current stream; loads are copied on a
    stream of their own. No call waits for the device.
    """

    def __init__(self, settings: Settings, device: torch.device, *, waits_after_encoder: bool) -> None:
        self.cache = EmbeddingCache(
            settings.row_width,
            dtype=settings.dtype,
            device=device,
            device_bytes=settings.device_bytes,
            host_bytes=settings.host_bytes,
            page_rows=settings.page_rows,
        )
        self._on_device = DeviceRows(self.cache)
        self._counts = Counts()
        self._times = StepTimes(self.cache.device, self._counts)
        self._waits_after_encoder = waits_after_encoder
        is_cuda = self.cache.device.type == "cuda"
        self._load_stream = torch.cuda.Stream(self.cache.device) if is_cuda else None
        self._epoch = 0
        self._orders = StepOrders()
        self._report = StepReport(0, 0)
        self._unawaited: list[str] = []  # identifiers of loads
        self._logged: set[str] = set()
        self._namespace_of = lru_cache(maxsize=1024)(
            lambda salt: key_from_id(encode(salt), namespace=settings.namespace)
        )

    def begin(self, orders: StepOrders, rows: EncoderCache) -> None:
        """Execute the orders of a step, up to its loads. The encoder has not run yet.

        Parameters
        ----------
        orders
            The orders.
        rows
            vLLM's encoder cache. Identifiers to load are added, and identifiers to save are removed, so that
            the encoder runs for them.
        """
        self._orders = orders
        self._report = StepReport(orders.step, orders.epoch)
        self._on_device.rows = rows
        if orders.epoch != self._epoch:
            self._epoch = orders.epoch
            self._on_device.release_all()
            self.cache.clear()
        elif self._on_device.was_cleared():
            self._recover()
        for identifier in orders.releases:
            self._on_device.release(identifier)
        for key in orders.host_drops:
            self.cache.discard(self._digest(key), tier="host")
        for key in orders.drops:
            self.cache.discard(self._digest(key))
        for key in orders.demotions:
            self._demote(key)
        for identifier in orders.saves:
            rows.pop(identifier, None)
            self._on_device.release(identifier)
        if orders.loads:
            self._load_all(orders.loads)
        if orders.saves:
            self._times.start_encoder()

    def save(self, identifier: str) -> None:
        """Copy fresh rows of vLLM's encoder cache to device pages, and replace them by a view of the pages.

        Rows that the scheduler has not ordered to save are left alone. Rows that cannot be saved are copied,
        so that vLLM's encoder cache does not keep the output of a whole batch alive.
        """
        self._wait_for_loads()
        order = self._orders.saves.get(identifier)
        if order is None or order.key in self._report.saved:
            return
        self._times.stop_encoder(sum(each.num_rows for each in self._orders.saves.values()))
        fresh = self._on_device.rows[identifier]
        if not self._save(identifier, order, fresh):
            self._on_device.rows[identifier] = fresh.clone()

    def end(self) -> StepReport | None:
        """End the step. Return its report, or None if there is nothing to report."""
        self._wait_for_loads()
        self._on_device.end_step()
        self._times.collect()
        orders, report = self._orders, self._report
        self._orders = StepOrders(orders.step, orders.epoch)
        self._counts.add("compactions", self._on_device.num_compactions)
        self._on_device.num_compactions = 0
        report.counts = self._counts.take()
        report.encoded_rows, self._times.encoded_rows = self._times.encoded_rows, 0
        is_news = orders.saves or orders.loads or report.missing or report.is_cleared or report.counts
        return report if is_news else None

    def close(self) -> None:
        """Free the memory, except the pages that vLLM's encoder cache shows."""
        for identifier in list(self._on_device.shown):
            self._on_device.release(identifier)
        self.cache.close()

    # Parts

    def _digest(self, key: ItemKey) -> bytes:
        return key_from_id(encode(key.identifier), namespace=self._namespace_of(key.salt))

    def _recover(self) -> None:
        """Drop all rows, as vLLM's encoder cache was cleared by the worker alone, and report it."""
        used = self._on_device.shown.keys() - self._orders.releases
        leases = {identifier: self._on_device.shown[identifier].lease for identifier in used}
        self._on_device.release_all()
        self.cache.clear()
        for identifier, lease in leases.items():
            self._on_device.show_zeros(identifier, (lease.num_rows, lease.row_width))
        self._report.is_cleared = True

    def _demote(self, key: ItemKey) -> None:
        digest = self._digest(key)
        if self.cache.demote(digest):
            self._counts.add("demotions")
        else:
            self.cache.discard(digest)
            self._report.missing.add(key)

    def _load_all(self, loads: dict[str, LoadOrder]) -> None:
        self._times.start_loads()
        for identifier, order in loads.items():
            digest = self._digest(order.key)
            lease = self._load(digest, order.num_rows)
            if lease is None:
                self._on_device.show_zeros(identifier, (order.num_rows, self.cache.row_width))
                self._report.lost.add(identifier)
                continue
            self._on_device.show(identifier, digest, lease)
            self._unawaited.append(identifier)
            self._counts.add("load_bytes", lease.num_rows * lease.row_width * lease.dtype.itemsize)
        self._times.end_loads(self._on_load_stream())
        # Without an encoder, `save` is not called before the rows are read.
        if not (self._waits_after_encoder and self._orders.runs_encoder):
            self._wait_for_loads()

    def _load(self, digest: bytes, num_rows: int) -> Lease | None:
        """Copy a host entry to device pages. Return a lease on them, or None if the entry is lost."""
        source = self.cache.get(digest, num_rows=num_rows)
        if source is None or source.tier == "device":
            return source
        with source:
            reservation = self._on_device.promote(source)
            if reservation is None:
                return None
            with self._on_load_stream(), reservation:
                reservation.write(source)
                return reservation.commit_lease()

    def _wait_for_loads(self) -> None:
        """Let the current stream wait for the loads of this step."""
        if self._unawaited:
            self._times.await_loads(len(self._unawaited))
            self._on_device.use(self._unawaited)
            self._unawaited.clear()

    def _save(self, identifier: str, order: SaveOrder, fresh: Tensor) -> bool:
        """Write fresh rows to pages. Return False if they are not those that the scheduler has counted."""
        if not self._fits(order, fresh):
            return False
        digest = self._digest(order.key)
        reservation = self._on_device.reserve(digest, order.num_rows, fresh.shape[1])
        if reservation is None:
            self._log_once("an item is not kept: %d device pages are not free", order.num_pages)
            return False
        with reservation:
            reservation.write(fresh)
            lease = reservation.commit_lease()
        if lease is None:
            return False
        self._on_device.show(identifier, digest, lease)
        self._on_device.use([identifier])
        if order.to_host:
            self.cache.copy_to_host(digest)
        self._report.saved.add(order.key)
        self._counts.add("stores")
        self._counts.add("store_bytes", fresh.shape[0] * fresh.shape[1] * self.cache.dtype.itemsize)
        return True

    def _fits(self, order: SaveOrder, fresh: Tensor) -> bool:
        width = self.cache.row_width
        if fresh.dtype not in DTYPES:
            self._log_once(
                "an item is not kept: its dtype is %s, expected one of %s", fresh.dtype, DTYPE_NAMES
            )
            return False
        if (
            fresh.ndim != 2
            or fresh.shape[0] != order.num_rows
            or not fresh.shape[1]
            or width % fresh.shape[1]
        ):
            self._log_once(
                "an item is not kept: its shape is %s, expected %d rows whose width divides %d",
                tuple(fresh.shape),
                order.num_rows,
                width,
            )
            return False
        num_pages = self.cache.pages_for(order.num_rows, fresh.shape[1])
        if num_pages > order.num_pages:
            self._log_once(
                "an item is not kept: it needs %d pages, the scheduler counted %d", num_pages, order.num_pages
            )
            return False
        return True

    def _log_once(self, message: str, *values: object) -> None:
        """Log the first refusal of a kind. All are counted by the scheduler."""
        if message not in self._logged:
            self._logged.add(message)
            logger.error(message + "; further ones are only counted", *values)

    def _on_load_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._load_stream is None else torch.cuda.stream(self._load_stream)


def encode(text: str) -> bytes:
    """Return a text of a client, which may contain surrogates, as bytes."""
    return text.encode("utf-8", "surrogatepass")
