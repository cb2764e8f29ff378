"""The embedding cache: rows by content key, in pages of a device tier and a host tier."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vitcache.arguments import to_device, to_int, to_ms
from vitcache.cache.checksums import Checksums
from vitcache.cache.claims import Claim, Claims
from vitcache.cache.coordinator import CacheCoordinator
from vitcache.cache.ledger import Ledger
from vitcache.cache.policies import make_policy
from vitcache.cache.stats import CacheStats
from vitcache.device.streams import make_timeline
from vitcache.keys.content import KEY_BYTES, check_key
from vitcache.pages.entry import Entry
from vitcache.pages.lease import CacheHandle, Lease, ReleaseQueue
from vitcache.pages.pending import PendingWrite
from vitcache.pages.pool import PagePool
from vitcache.pages.reservation import Reservation, outdated, warn_refused
from vitcache.placement.calibration import calibrate_cuda
from vitcache.rows import DTYPE_NAMES, DTYPES, check_rows

__all__ = ["CacheStats", "EmbeddingCache"]

# 27 ms for the 880 rows of a 1280x720 image: a Qwen3-VL-8B on an H100, by the design's measurements.
MS_PER_ROW = 27 / 880

# `get` takes released leases back in batches: what it returns does not depend on them.
_RELEASES_PER_BATCH = 64


@lru_cache(maxsize=4096)
def _estimated_ms(num_rows: int) -> float:
    # One object for all entries of a length: a look-up that adds it up finds it in the CPU's cache.
    return num_rows * MS_PER_ROW


class EmbeddingCache:
    """Rows of encoded items by content key, in an exact number of bytes.

    Rows live in pages that are allocated here, once. `put` copies into the device tier. What must make room
    for it goes to the host tier, if there is one, is read from there, and comes back by `promote`. What came
    back keeps its host pages as long as nothing needs them, and goes to the host tier again without a copy. A
    leased entry stays where it is.

    Parameters
    ----------
    row_width
        Elements of a row.
    dtype
        Storage dtype: float32, float16 or bfloat16. `put` rounds to it.
    device
        Device of the device tier, CPU or CUDA. None: the current CUDA device if there is one, else the CPU.
    device_bytes, host_bytes
        Budget of each tier in bytes: as many pages are allocated as fit. The host tier of a CUDA device is
        page-locked.
    page_rows
        Rows of a page, the unit of storage.
    policy
        What goes when room is needed: ``"lru"``, the least recently used; ``"s3fifo"``, what was not hit
        while it was new; ``"cost"``, what saves the least encode time per page.
    checksum
        Whether `get` compares what it finds in the host tier with a checksum that was taken when it came
        there. What has changed is dropped, a miss, logged, and counted in `corruptions`. Such a look-up waits
        for the copy to the host tier and reads all rows on the host, once more the first time.

    Raises
    ------
    ValueError
        If a number is too small, a budget holds no page, or the device or the policy is unknown.
    TypeError
        If an argument is of another type, or `dtype` is another one.
    MemoryError
        If the host tier cannot be page-locked.
    CudaError
        If the device is a CUDA device, and there is none; or no CUDA runtime, which a host tier needs.

    Notes
    -----
    Any thread may call anything at any time; a forked child must not. Work goes to the current stream of the
    cache's device: pages are written there, behind whatever stream last read or wrote them, and `Lease.use`
    orders readers behind the writer. What moves to the host tier is copied on a stream of the cache's own. A
    stream must live until the first `put` after its last lease was released. The host waits for the device
    only where `put` copies rows between CPU and CUDA, where memory is allocated and given up, and where `get`
    compares a checksum.
    """

    def __init__(
        self,
        row_width: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        device_bytes: int,
        host_bytes: int = 0,
        page_rows: int = 64,
        policy: str = "lru",
        checksum: bool = False,
    ) -> None:
        row_width = to_int("row_width", row_width, 1)
        page_rows = to_int("page_rows", page_rows, 1)
        device_bytes = to_int("device_bytes", device_bytes, 0)
        host_bytes = to_int("host_bytes", host_bytes, 0)
        if dtype not in DTYPES:
            raise TypeError(f"dtype is {dtype}, it must be one of {DTYPE_NAMES}")
        page_bytes = page_rows * row_width * dtype.itemsize
        for name, budget in (("device_bytes", device_bytes), ("host_bytes", host_bytes or page_bytes)):
            if budget < page_bytes:
                raise ValueError(f"{name} is {budget}, one page of {page_rows} rows takes {page_bytes} bytes")
        make_policy(policy, 1)
        self.row_width = row_width
        self.page_rows = page_rows
        self.dtype = dtype
        self.device = to_device(device)
        self.has_host_tier = host_bytes > 0
        timeline = make_timeline(self.device)
        pools = [
            PagePool(tier, budget // page_bytes, page_rows, row_width, dtype, self.device)
            for tier, budget in (("device", device_bytes), ("host", host_bytes))
            if budget
        ]
        # No other stream may still use the memory when it comes, nor when it goes.
        timeline.synchronize()
        for pool in pools:
            weakref.finalize(pool, timeline.synchronize).atexit = False
        if host_bytes and self.device.type == "cuda":
            calibrate_cuda(self.device)
        checksums = Checksums(timeline) if checksum and host_bytes else None
        handle = CacheHandle(self.device, timeline, ReleaseQueue())
        self._coordinator = CacheCoordinator(Ledger(policy, *pools), handle, checksums)
        self._claims = Claims()

    def put(
        self, key: bytes, rows: Tensor, *, epoch: int | None = None, encode_ms: float | None = None
    ) -> bool:
        """Copy `rows` into the cache under `key`, in place of what is there.

        Parameters
        ----------
        key
            32 bytes, such as from `content_key`.
        rows
            Shape ``(num_rows, row_width)``, float32, float16 or bfloat16, of any strides, on the CPU or CUDA;
            ready on the current stream, and free to be changed on it at once. No rows are an entry, too,
            which takes a page.
        epoch
            `EmbeddingCache.epoch` as it was before the rows were encoded: if it has changed since, they are
            outdated and not admitted. None: they are of the current one. `Claim.put` passes the claim's.
        encode_ms
            What a hit will save, for policies that look at costs. None: taken to grow with the rows.

        Returns
        -------
        bool
            False if it was not admitted: it is too large, too much is leased, `epoch` is over, or the cache
            was cleared meanwhile. Then what is under `key` stays, nothing was evicted for it, and a warning
            was logged.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes, `rows` is of another shape, or a number is negative.
        TypeError
            If `key` is not bytes, `rows` is no such tensor, or a number is none.
        RuntimeError
            If the cache was closed.

        Notes
        -----
        While it copies, what makes room for it cannot be looked up. If copying fails or is interrupted, that
        is lost and nothing is inserted.
        """
        check_key(key)
        rows = check_rows(rows, self.row_width)
        reservation = self._reserve(key, rows.shape[0], epoch, encode_ms)
        if reservation is None:
            return False
        with reservation:
            reservation.write_checked(rows)
            return reservation.commit()

    def reserve(
        self, key: bytes, num_rows: int, *, epoch: int | None = None, encode_ms: float | None = None
    ) -> Reservation | None:
        """Make room for the rows of `key`, to be written there and entered later.

        What makes room is copied to the host tier on the cache's own stream, and the pages are written behind
        that. Reserved before the rows are encoded, the copies run beside the encode, and nothing waits.

        Parameters
        ----------
        key
            32 bytes.
        num_rows
            Rows that will be written.
        epoch, encode_ms
            As in `put`.

        Returns
        -------
        Reservation or None
            None where `put` would return False; a warning was logged.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes, or a number is negative.
        TypeError
            If `key` is not bytes, or a number is none.
        RuntimeError
            If the cache was closed.

        Notes
        -----
        As in `put`. Until the reservation is committed or cancelled its pages serve nobody.
        """
        check_key(key)
        return self._reserve(key, to_int("num_rows", num_rows, 0), epoch, encode_ms)

    def _reserve(
        self, key: bytes, num_rows: int, epoch: int | None, encode_ms: float | None
    ) -> Reservation | None:
        """`reserve` under a key and for a number that were checked."""
        if epoch is not None:
            epoch = to_int("epoch", epoch, 0)
        cost = _estimated_ms(num_rows) if encode_ms is None else to_ms("encode_ms", encode_ms)
        found: list[tuple[PagePool, int, int]] = []

        def begin(ledger: Ledger) -> PendingWrite | None:
            pool, now = ledger.device, ledger.epoch
            found.append((pool, now, pool.num_available))
            return ledger.begin(key, num_rows, cost, now if epoch is None else epoch)

        reservation = self._coordinator.reserve(begin)
        if reservation is None:
            [(pool, now, available)] = found
            if epoch is None or epoch == now:
                fits = pool.pages_for(num_rows) <= pool.num_pages
                advice = "raise device_bytes or release leases" if fits else "raise device_bytes"
            else:
                advice = outdated(epoch, now)
            warn_refused(num_rows, pool, available, advice)
        return reservation

    def has_room(self, num_rows: int) -> bool:
        """Whether `put` would admit so many rows now: whether they fit beside what is leased or written.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As `reserve`.
        """
        num_rows = to_int("num_rows", num_rows, 0)
        self._coordinator.drain()
        with self._coordinator.lock:
            device = self._coordinator.open().device
            return device.pages_for(num_rows) <= device.num_available

    def expect(self, num_rows: Sequence[int]) -> None:
        """Begin to copy to the host tier what items of so many rows would push there.

        Call it before they are encoded: the copies run beside that, and the rows are written with no wait for
        them. What was copied stays on the device until it is in the way; then it goes without another copy,
        unless something else needed the room of its copy before. Without a host tier, or where there is room,
        nothing is done. Never waits.

        Parameters
        ----------
        num_rows
            One number per item.

        Raises
        ------
        ValueError
            If a number is negative.
        TypeError
            If a number is no int.
        RuntimeError
            If the cache was closed.

        Notes
        -----
        The copies need room in the host tier: what goes there next goes now.
        """
        self._coordinator.expect([to_int("num_rows", number, 0) for number in num_rows])

    def promote(self, lease: Lease) -> Reservation | None:
        """Make room on the device for an entry of the host tier, as a second place for it.

        Write the leased rows there, best in the launch that places them: with the lease as the source and
        ``store=[reservation]``, `scatter_embeddings` and `embed_tokens` read them once from host memory. Then
        `Reservation.commit`, and release the lease. What makes room is moved as in `reserve`.

        When is the caller's choice. Promoting what is hit once more than it was demoted for is a good rule:
        ``lease.tier == "host" and lease.hits > 1``.

        Parameters
        ----------
        lease
            From `get` of this cache.

        Returns
        -------
        Reservation or None
            None if the entry is in the device tier or no longer in the cache, or if there is no room. Nothing
            is lost by that, so it is neither logged nor counted.

        Raises
        ------
        ValueError
            If it is a lease of another cache.
        TypeError
            If it is no lease.
        RuntimeError
            If the lease was released, or the cache was closed.
        """
        if not isinstance(lease, Lease):
            raise TypeError(f"lease must be a Lease, it is {type(lease).__name__}")
        if lease._handle is not self._coordinator.handle:
            raise ValueError(f"the lease of {lease.num_rows} rows is of another cache")
        source = lease._entry()
        return self._coordinator.reserve(lambda ledger: ledger.begin_promotion(source))

    def get(self, key: bytes, *, num_rows: int | None = None) -> Lease | None:
        """Return a lease on the rows under `key`, or None.

        Parameters
        ----------
        key
            32 bytes.
        num_rows
            Rows that the caller expects. An entry of another length is dropped, and is a miss.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes, or `num_rows` is negative.
        TypeError
            If `key` is not bytes, or `num_rows` is no int.
        RuntimeError
            If the cache was closed.
        """
        if type(key) is not bytes or len(key) != KEY_BYTES:
            check_key(key)
        if num_rows is not None and (type(num_rows) is not int or num_rows < 0):
            num_rows = to_int("num_rows", num_rows, 0)
        coordinator = self._coordinator
        if len(coordinator.handle.releases.queue) >= _RELEASES_PER_BATCH:
            coordinator.drain()
        pin: list[Entry] = []
        try:
            with coordinator.lock:
                entry = coordinator.open().pin(key, num_rows)
                if entry is None:
                    return None
                pin.append(entry)
            lease = Lease(pin, coordinator.handle)
            if entry.checksum is None or coordinator.is_intact(entry):
                return lease
            lease.release()
            return None
        except BaseException:
            while pin:
                coordinator.handle.releases.add((pin.pop(), frozenset()))
            raise

    def claim(self, key: bytes) -> Claim:
        """Claim the right to encode what is missing under `key`, so that others wait for it.

        Parameters
        ----------
        key
            32 bytes.

        Returns
        -------
        Claim
            With `is_mine`: encode the item, `Claim.put` its rows, release the claim. Else wait for it, and
            look up again. Claims of an earlier epoch are none of this one's.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As `get`.
        """
        check_key(key)
        return self._claims.claim(key, self.epoch, self)

    @property
    def epoch(self) -> int:
        """Calls of `advance_epoch` and `clear` so far.

        Read it before encoding, and hand it to `put`: rows that were computed before one of these calls are
        not admitted after it.
        """
        with self._coordinator.lock:
            return self._coordinator.open().epoch

    def __contains__(self, key: bytes) -> bool:
        """Whether there is an entry under `key`; neither a hit nor a miss."""
        check_key(key)
        with self._coordinator.lock:
            return key in self._coordinator.open().index

    def __len__(self) -> int:
        """Return the number of entries that can be looked up."""
        with self._coordinator.lock:
            return len(self._coordinator.open().index)

    def stats(self) -> CacheStats:
        """Return counts and sizes at this moment."""
        self._coordinator.drain()
        with self._coordinator.lock:
            return self._coordinator.open().stats()

    def clear(self) -> None:
        """Begin an epoch, drop every entry and free its pages; those of a leased one once it is released."""
        self._coordinator.drain()
        with self._coordinator.lock:
            self._coordinator.open().clear()

    def advance_epoch(self) -> None:
        """Make every entry unreachable, in constant time, because what it was computed with has changed.

        Their pages count as in use until they are needed; they go before any later entry does.
        """
        with self._coordinator.lock:
            self._coordinator.open().advance()

    def check_integrity(self) -> None:
        """Raise RuntimeError if the books do not agree: each page has one owner, and all counts are right."""
        self._coordinator.drain()
        with self._coordinator.lock:
            violations = self._coordinator.open().violations()
        if violations:
            raise RuntimeError(f"the cache is inconsistent: {'; '.join(violations)}")

    def close(self) -> None:
        """Drop every entry, and let the memory go with the last lease. A second call does nothing."""
        self._coordinator.close()
