"""The worker's side: an `EmbeddingCache` that executes the scheduler's orders."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from vitcache.adapters.vllm.counts import Counts
from vitcache.adapters.vllm.device_rows import DeviceRows, EncoderCache
from vitcache.adapters.vllm.identifiers import encode, tenant_of
from vitcache.adapters.vllm.orders import ItemKey, LoadOrder, SaveOrder, StepOrders, StepReport
from vitcache.adapters.vllm.pending_rows import PendingEntry, PendingRows
from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.step_times import StepTimes
from vitcache.adapters.vllm.tier_fetches import Item
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.fetch import Fetch
from vitcache.cache.stats import TierStats
from vitcache.keys.identifiers import key_from_id
from vitcache.pages.lease import Lease
from vitcache.rows import DTYPE_NAMES, DTYPES
from vitcache.tiers.write_back import MOST_HITS, WriteBack
from vitcache.tracing import traced

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
        Whether the encoder's stream waits for loads only after the encoder: `save` is called between the
        encoder and the reads of vLLM's encoder cache, as Model Runner V1 does, or a placement calls
        `wait_for_loads`.
    merge_reason
        Why vLLM's merge reads the rows of each step: a label of the counter "merges". None: a placement reads
        them. Then a load of a step without an encoder is not copied first: the launch of the placement reads
        the pinned memory, and writes the device pages, too.

    Attributes
    ----------
    cache
        The cache. It is allocated here, all of it.
    on_device
        The entries that vLLM's encoder cache shows.
    pending
        Entries of this step whose pages are not written yet.
    counts
        Counters since the last report.

    Notes
    -----
    Only the worker's thread may call; `begin_fetch`, `tier_stats` and `forget_weights` may be called by any
    thread. Rows are read and written on the current stream; loads are copied on a stream of their own. No
    call waits for the device. `forget_weights`, and `begin` after a reset, wait for the lower tiers for at
    most 1 s.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        *,
        waits_after_encoder: bool,
        merge_reason: str | None,
    ) -> None:
        tiers = settings.tiers
        self.cache = EmbeddingCache(
            settings.row_width,
            dtype=settings.dtype,
            device=device,
            device_bytes=settings.device_bytes,
            host_bytes=settings.host_bytes + settings.fetch_pages * settings.page_bytes,
            page_rows=settings.page_rows,
            tiers=() if tiers is None else tiers.make(),
            weights_name=None if tiers is None else tiers.weights_name,
            # Only entries that the scheduler orders to offer. The threads of the tiers lease none of the
            # device pages, which are moved and must be free in time.
            write_back=WriteBack(hits=MOST_HITS, from_device=False),
            fetch_timeout_s=0.0 if tiers is None else tiers.timeout_s,
        )
        self.on_device = DeviceRows(self.cache, self.commit)
        self.pending = PendingRows()
        self.counts = Counts()
        # A step may encode items of several modalities at once: their time cannot be divided by their widths.
        self._has_one_width = True
        self._times = StepTimes(self.cache.device, self.counts, self._note_encode)
        self._waits_after_encoder = waits_after_encoder
        self._merge_reason = merge_reason
        is_cuda = self.cache.device.type == "cuda"
        self._load_stream = torch.cuda.Stream(self.cache.device) if is_cuda else None
        self._epoch = 0
        self._orders = StepOrders()
        self._report = StepReport(0, 0)
        self._unawaited: list[str] = []  # identifiers of loads
        self._is_encoding = False
        self._logged: set[str] = set()
        self._namespace_of = lru_cache(maxsize=1024)(
            lambda salt: key_from_id(encode(salt), namespace=settings.namespace)
        )

    def begin(self, orders: StepOrders, rows: EncoderCache) -> None:
        """Begin a step: release, drop and demote entries, and queue loads.

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
        self.on_device.rows = rows
        if orders.epoch != self._epoch:
            self._epoch = orders.epoch
            self.on_device.release_all()
            self.cache.clear()
        elif self.on_device.was_cleared():
            self._recover()
        for identifier in orders.releases:
            self.on_device.release(identifier)
        for key in orders.host_drops:
            self.cache.discard(self._digest(key), tier="host")
        for key in orders.drops:
            self.cache.evict(self._digest(key))
        for key in orders.demotions:
            self._demote(key)
        for identifier in orders.saves:
            rows.pop(identifier, None)
            self.on_device.release(identifier)
        if orders.loads:
            self._load_all(orders.loads)
        if orders.saves:
            self._times.start_encoder()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Time the encoder inside of the context, which may call `save` between its micro-batches."""
        self._times.start_encoder()
        self._is_encoding = True
        try:
            yield
        finally:
            self._is_encoding = False
            self._stop_encoder()

    def reserve(self, identifiers: Iterable[str]) -> None:
        """Reserve device pages for fresh rows of vLLM's encoder cache, which become pending entries.

        Rows that the scheduler has not ordered to save, that cannot be saved, or for which too few pages are
        free are left alone.
        """
        for identifier in identifiers:
            order = self._orders.saves.get(identifier)
            if order is None or order.key in self._report.saved or identifier in self.pending:
                continue
            fresh = self.on_device.rows[identifier]
            if not self._fits(order, fresh):
                continue
            self._has_one_width &= fresh.shape[1] == self.cache.row_width
            key = self._digest(order.key)
            tenant = tenant_of(order.key.salt)
            reservation = self.on_device.reserve(key, order.num_rows, fresh.shape[1], tenant)
            if reservation is None:
                self._log_once("an item is not kept: %d device pages are not free", order.num_pages)
            else:
                self.pending.add(identifier, PendingEntry(key, fresh, reservation))

    def commit(self, written: Collection[str] = ()) -> None:
        """Insert the pending entries into the cache, and show them in vLLM's encoder cache.

        Parameters
        ----------
        written
            Entries whose rows a launch on the current stream writes to their pages. Those of others are
            copied now.
        """
        if not len(self.pending):
            return
        num_copied = sum(name in self._orders.loads and name not in written for name in self.pending)
        if num_copied:
            self._times.start_host_reads()
        committed = self.pending.commit(written)
        if num_copied:
            self._times.stop_host_reads(num_copied, "exposed")
        for identifier, (entry, lease) in committed.items():
            order = self._orders.saves.get(identifier)
            if lease is None:
                if order is None:
                    self._lose(identifier, entry.reservation.num_rows)
                continue
            if order is None:
                self._show_loaded(identifier, entry.key, lease)
            else:
                self._show_saved(identifier, order, entry.key, lease)
            self.on_device.use([identifier])

    @contextmanager
    def placing(self, identifiers: Sequence[str]) -> Iterator[None]:
        """Commit pending entries after the context, in which a launch writes their rows to their pages.

        If the context raises, the entries stay pending.
        """
        num_loads = sum(identifier in self._orders.loads for identifier in identifiers)
        if num_loads:
            self._times.start_host_reads()
        yield
        if num_loads:
            self._times.stop_host_reads(num_loads, "placed")
        self.commit(identifiers)

    def save(self, identifier: str) -> None:
        """Copy fresh rows of vLLM's encoder cache to device pages, and replace them by a view of the pages.

        Rows that the scheduler has not ordered to save are left alone. Rows that cannot be saved are copied,
        so that vLLM's encoder cache does not keep the output of a whole batch alive.
        """
        if not self._is_encoding:
            self.wait_for_loads()
        order = self._orders.saves.get(identifier)
        if order is None or order.key in self._report.saved:
            return
        if not self._is_encoding:
            self._stop_encoder()
        self.reserve([identifier])
        self.commit()
        if order.key not in self._report.saved:
            self.on_device.rows[identifier] = self.on_device.rows[identifier].clone()

    def wait_for_loads(self) -> None:
        """Let the current stream wait for the copies of this step's loads."""
        if self._unawaited:
            self._times.await_loads(len(self._unawaited))
            self.on_device.use(self._unawaited)
            self._unawaited.clear()

    def show_all(self) -> None:
        """Commit the pending entries and wait for loads: vLLM's encoder cache has all rows of the step."""
        self.commit()
        self.wait_for_loads()

    def end(self) -> StepReport | None:
        """End the step. Return its report, or None if there is nothing to report."""
        self.show_all()
        self.on_device.end_step()
        self._times.collect()
        orders, report = self._orders, self._report
        for key in orders.offers:
            self._offer(self._digest(key))
        self._orders = StepOrders(orders.step, orders.epoch)
        self.counts.add("compactions", self.on_device.num_compactions)
        self.on_device.num_compactions = 0
        if self._merge_reason is not None and orders.reads_items:
            self.counts.add(f"merges_{self._merge_reason}")
        report.counts = self.counts.take()
        report.encoded_rows, self._times.encoded_rows = self._times.encoded_rows, 0
        is_news = orders.saves or orders.loads or report.missing or report.is_cleared or report.counts
        return report if is_news else None

    def close(self) -> None:
        """Free the memory, except the pages that vLLM's encoder cache shows."""
        self.pending.cancel()
        for identifier in list(self.on_device.shown):
            self.on_device.release(identifier)
        self.cache.close()

    # The lower tiers

    def begin_fetch(self, item: Item) -> Fetch:
        """Begin to fetch an item from the lower tiers to free host pages."""
        return self.cache.begin_fetch(
            [self._digest(item.key)],
            item.num_rows,
            row_width=item.row_width,
            tenant=tenant_of(item.key.salt),
            evict=False,
        )

    def _offer(self, key: bytes) -> None:
        """Offer an entry to the lower tiers, whose threads read it in the host tier."""
        self.cache.copy_to_host(key)  # an entry of the device tier that has no copy yet
        self.cache.offer(key)

    def tier_stats(self) -> tuple[TierStats, ...]:
        """Return the counts of each lower tier."""
        return self.cache.stats().tiers

    def forget_weights(self) -> None:
        """Drop all rows, and the name under which the lower tiers have them."""
        self.cache.clear()

    # Parts

    @traced("key")
    def _digest(self, key: ItemKey) -> bytes:
        return key_from_id(encode(key.identifier), namespace=self._namespace_of(key.salt))

    def _recover(self) -> None:
        """Drop all rows, as vLLM's encoder cache was cleared by the worker alone, and report it."""
        used = self.on_device.shown.keys() - self._orders.releases
        leases = {identifier: self.on_device.shown[identifier].lease for identifier in used}
        self.on_device.release_all()
        self.cache.clear()
        for identifier, lease in leases.items():
            self.on_device.show_zeros(identifier, (lease.num_rows, lease.row_width))
        self._report.is_cleared = True

    def _demote(self, key: ItemKey) -> None:
        digest = self._digest(key)
        if self.cache.demote(digest):
            self.counts.add("demotions")
        else:
            self.cache.evict(digest)
            self._report.missing.add(key)

    @traced("copy")
    def _load_all(self, loads: dict[str, LoadOrder]) -> None:
        self._times.start_loads()
        for identifier, order in loads.items():
            if not self._load(identifier, order):
                self._lose(identifier, order.num_rows)
        self._times.end_loads(self._on_load_stream())
        # Without an encoder, `save` is not called before the rows are read.
        if not (self._waits_after_encoder and self._orders.runs_encoder):
            self.wait_for_loads()

    def _load(self, identifier: str, order: LoadOrder) -> bool:
        """Load a host entry into device pages. Return False if it is lost."""
        key = self._digest(order.key)
        source = self.cache.get(key, num_rows=order.num_rows)
        if source is None:
            return False
        lease: Lease | None = source  # in the device tier, the rows need no copy
        if source.tier == "host":
            reservation = self.on_device.promote(source)
            if reservation is None:
                source.release()
                return False
            if self._merge_reason is None and not self._orders.runs_encoder:
                self.pending.add(identifier, PendingEntry(key, source, reservation))
                return True
            with source, self._on_load_stream(), reservation:
                reservation.write(source)
                lease = reservation.commit_lease()
        if lease is None:
            return False
        self._show_loaded(identifier, key, lease)
        self._unawaited.append(identifier)
        return True

    def _lose(self, identifier: str, num_rows: int) -> None:
        self.on_device.show_zeros(identifier, (num_rows, self.cache.row_width))
        self._report.lost.add(identifier)

    def _show_loaded(self, identifier: str, key: bytes, lease: Lease) -> None:
        self.on_device.show(identifier, key, lease)
        self.counts.add("load_bytes", lease.num_rows * lease.row_width * lease.dtype.itemsize)

    def _show_saved(self, identifier: str, order: SaveOrder, key: bytes, lease: Lease) -> None:
        self.on_device.show(identifier, key, lease)
        if order.to_host:
            self.cache.copy_to_host(key)
        self._report.saved.add(order.key)
        self.counts.add("stores")
        self.counts.add("store_bytes", lease.num_rows * lease.row_width * self.cache.dtype.itemsize)

    def _note_encode(self, num_rows: int, encode_ms: float) -> None:
        if self.cache.encode_times is not None and self._has_one_width:
            self.cache.encode_times.note(num_rows, self.cache.row_width, encode_ms)

    def _stop_encoder(self) -> None:
        self._times.stop_encoder(sum(order.num_rows for order in self._orders.saves.values()))

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
