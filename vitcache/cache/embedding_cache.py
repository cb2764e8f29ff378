"""The embedding cache: rows by content key, in the pages of a device tier and a host tier."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitcache.arguments import INT64_MAX, check_bool, to_bytes, to_device, to_int, to_timeout
from vitcache.cache.call_arguments import (
    MOST_ROWS,
    check_discard_tier,
    check_keys,
    check_num_rows,
    check_row_widths,
    check_tenant,
    check_tier,
    tenant_label,
    to_cost,
    to_row_width,
    to_rows,
)
from vitcache.cache.claims import Claim, claim
from vitcache.cache.construction import construct
from vitcache.cache.fetch import Fetch
from vitcache.cache.policies import make_policy
from vitcache.cache.stats import CacheStats, make_stats
from vitcache.cache.tier_arguments import (
    check_tiers,
    check_wanted,
    check_weights_name,
    check_write_back,
    to_seconds,
)
from vitcache.handles import describe_count, describe_use, described, refuse_copies
from vitcache.keys.content import check_key
from vitcache.pages.lease import Lease, release_all
from vitcache.pages.reservation import Reservation
from vitcache.rows import DTYPE_NAMES, DTYPES, check_rows
from vitcache.tiers.protocol import Tier
from vitcache.tiers.write_back import WriteBack

if TYPE_CHECKING:
    from vitcache.cache.lower_tiers import LowerTiers
    from vitcache.tiers.encode_times import EncodeTimes

__all__ = ["CacheStats", "EmbeddingCache"]


class EmbeddingCache:
    """A cache of encoded rows by content key, in a fixed number of bytes of a device tier and a host tier.

    `put` copies rows into the device tier, and `get` returns a lease on them. When the device tier is full,
    the policy chooses entries to evict. If there is a host tier, the cache demotes them: it copies their rows
    to the host tier. The policies ``"s3fifo"`` and ``"cost"`` do not demote an entry that is unlikely to be
    hit again. `get` finds demoted entries, too, and `promote` copies an entry back to the device tier. A
    promoted entry keeps its host copy until the host tier needs the pages. With a host copy, an entry can be
    demoted again without another copy. When the host tier is full, its entries are evicted from the cache.
    While an entry is leased, it is not evicted, and its pages are not written.

    The cache allocates all its memory when it is made, and divides it into pages. No page contains rows of
    two entries.

    Entries may have rows of different widths, each of which divides `row_width`. So plain audio fits beside
    images with deepstack levels in one budget: ``row_width // width`` rows of a smaller width lie in the
    space of one full row.

    Parameters
    ----------
    row_width
        Elements of a full row.
    dtype
        Storage dtype: float32, float16 or bfloat16. `put` rounds rows to it.
    device
        Device of the device tier, CPU or CUDA. None: the current CUDA device if there is one, else the CPU.
    device_bytes, host_bytes
        Size of each tier in bytes, an int or a str such as ``"8GiB"``, rounded down to whole pages.
        ``host_bytes=0``: no host tier. The host tier of a CUDA device is page-locked.
    page_rows
        Full rows of a page. An entry occupies ``ceil(num_rows / page_rows)`` pages, and at least one; see
        `pages_for`. Choose 1 if most items have only a few rows.
    policy
        Which entry a tier evicts first. ``"lru"``: the least recently used entry. ``"s3fifo"``: an entry that
        was not hit while it was new. ``"cost"``: the entry that saves the least encode time per page.
    checksum
        Whether `get` compares rows in the host tier with their checksum, which is computed after the copy to
        the host tier. If the rows do not match it, the entry is dropped, the look-up is a miss, and an error
        is logged and counted in `CacheStats.corruptions`. A look-up in the host tier then waits for the copy
        and for the checksum, and reads all rows on the host.
    record_evictions
        How many keys of entries that left the cache are kept for `take_evicted`. 0: none.
    tiers
        Tiers below the host tier, such as a `DiskTier`, the nearest first. They need a host tier. Each has a
        thread of the cache, which alone calls it, opens it at once and closes it in `close`. A tier that
        fails or is late is left alone for some time, and the cache works without it.
    weights_name
        Names the weights that encode the rows, and all else that the keys do not name, in the tiers: they
        return entries only under an equal name. Give equal names only for equal weights. None:
        a random name, so nothing is found after a restart, and nothing is shared.
    write_back
        Which entries are copied to the tiers; see `WriteBack`.
    fetch_timeout_s
        Seconds that `fetch` and `Fetch.wait` wait by default. A tier that needs longer is late.

    Attributes
    ----------
    row_width, page_rows, dtype, device
        The arguments. `device` has an index if it is a CUDA device.
    has_host_tier, has_lower_tiers
        Whether the cache has a host tier, and whether it has tiers below it (`tiers`).
    encode_times
        `vitcache.tiers.encode_times.EncodeTimes`: receives measured encode times. None if no tier has a
        `worth`: nothing needs them.
    device_pages, host_pages
        Number of pages of each tier. `host_pages` is 0 without a host tier.

    Raises
    ------
    ValueError
        If a number is too small or too large, `device_bytes` or `host_bytes` is less than one page, `device`
        is not the CPU or a CUDA device, or `policy` is unknown. If there are `tiers` and no host tier, two
        tiers have one name, the `worth` of a tier is not above 0, `weights_name` is empty, or
        `fetch_timeout_s` is negative or not finite.
    TypeError
        If a number is not an int, a size in bytes is neither an int nor a str, or `dtype` is not float32,
        float16 or bfloat16, or `checksum` is not a bool. A bool is not an int. If `tiers` is not a list or
        tuple of tiers, or another argument is not of the type of its default.
    RuntimeError
        If the process cannot start the thread of a tier.
    MemoryError
        If the host tier cannot be page-locked.
    CudaError
        If `device` is a CUDA device and torch finds no CUDA device, or `host_bytes` is not 0 and no CUDA
        runtime is found.

    Notes
    -----
    Threads: any thread may call any method at any time, also in a signal handler or a `__del__` that runs in
    the middle of another call. If a signal handler raises, no lock stays acquired and no page is lost: the
    cache is as before the call or as after it. Entries that a `put` has evicted for its pages stay evicted.

    Fork: a child has its own copy of a cache of the CPU. Pages that other threads had leased or reserved at
    the fork stay so in the child. The child of a process with a cache of CUDA cannot use it: RuntimeError. In
    a child the tiers are off: each fetch misses, nothing is stored, and `forget` raises RuntimeError.

    Streams: `put` and `Reservation.write` write pages on the current stream of the cache's device, after the
    last reads and writes of these pages on any stream. `Lease.use` lets the current stream wait for the
    write. Copies to the host tier run on the cache's own stream. If a lease was used on a stream, keep the
    stream alive until the first `put` after the release of the lease.

    The host waits for the device only when `put` or `Reservation.write` copies rows of the CPU to CUDA or to
    pages of the host tier that the device uses, when the cache allocates or frees its memory, and when `get`
    compares a checksum.

    A cache is a context manager: on exit, it is closed. It cannot be copied or pickled.

    Examples
    --------
    >>> import torch
    >>> from vitcache import EmbeddingCache
    >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=1 << 10, page_rows=2)
    >>> key = bytes(32)  # of the image's content, see `content_key`
    >>> cache.put(key, torch.ones(3, 4))
    True
    >>> with cache.get(key, num_rows=3) as lease:
    ...     lease.to_tensor().sum()
    tensor(12.)
    >>> print(cache.get(bytes([1]) * 32))  # a miss
    None
    """

    def __init__(
        self,
        row_width: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        device_bytes: int | str,
        host_bytes: int | str = 0,
        page_rows: int = 16,
        policy: str = "lru",
        checksum: bool = False,
        record_evictions: int = 0,
        tiers: Sequence[Tier] = (),
        weights_name: str | bytes | None = None,
        write_back: WriteBack = WriteBack(),  # noqa: B008 - frozen
        fetch_timeout_s: float = 0.1,
    ) -> None:
        row_width = to_int("row_width", row_width, 1, INT64_MAX)
        page_rows = to_int("page_rows", page_rows, 1, INT64_MAX)
        check_bool("checksum", checksum)
        device_bytes = to_bytes("device_bytes", device_bytes, 0)
        host_bytes = to_bytes("host_bytes", host_bytes, 0)
        record_evictions = min(to_int("record_evictions", record_evictions, 0), MOST_ROWS)
        if dtype not in DTYPES:
            raise TypeError(f"dtype is {dtype}, it must be one of {DTYPE_NAMES}")
        page_bytes = page_rows * row_width * dtype.itemsize
        for name, budget in (("device_bytes", device_bytes), ("host_bytes", host_bytes or page_bytes)):
            if budget < page_bytes:
                raise ValueError(
                    f"{name} is {budget}, it must be at least {page_bytes}: one page of {page_rows} rows"
                )
            if budget > sys.maxsize:
                raise ValueError(f"{name} is {budget}, it must be at most {sys.maxsize}")
        make_policy(policy, 1)
        lower = check_tiers(tiers, host_bytes > 0)
        check_weights_name(weights_name)
        check_write_back(write_back)
        fetch_timeout_s = to_seconds("fetch_timeout_s", fetch_timeout_s)
        self.row_width = row_width
        self.page_rows = page_rows
        self.dtype = dtype
        self.device = to_device(device)
        self.has_host_tier = host_bytes > 0
        self.has_lower_tiers = bool(lower)
        self.device_pages = device_bytes // page_bytes
        self.host_pages = host_bytes // page_bytes
        num_pages = {"device": self.device_pages} | ({"host": self.host_pages} if host_bytes else {})
        self._coordinator = construct(
            num_pages, page_rows, row_width, dtype, self.device, policy, checksum, record_evictions
        )
        self._ledger = self._coordinator.ledger
        self._get = self._ledger.get  # bound once, because every look-up calls it
        self._device_tier = self._coordinator.tiers[0]
        self._write_back_ms = write_back.encode_ms if lower else float("inf")
        self._lower: LowerTiers | None = None
        self.encode_times: EncodeTimes | None = None
        if lower:
            from vitcache.cache.lower_tiers import LowerTiers  # a cache without tiers does not load it

            self._lower = LowerTiers(
                lower, self._coordinator, self.device, dtype, weights_name, write_back, fetch_timeout_s
            )
            self.encode_times = self._lower.encode_times

    def put(
        self,
        key: bytes,
        rows: Tensor,
        *,
        epoch: int | None = None,
        encode_ms: float | None = None,
        tier: str = "device",
        tenant: str = "",
    ) -> bool:
        """Copy `rows` into the cache and insert them under `key`. An entry under `key` is replaced.

        Parameters
        ----------
        key
            32 bytes, such as from `content_key`.
        rows
            Shape ``(num_rows, width)``, where `width` divides the cache's `row_width`; float32, float16 or
            bfloat16; any strides; on the CPU or CUDA. The rows are read on the current stream, so they may be
            changed on that stream after the call. An empty tensor is a valid entry; it occupies one page.
        epoch
            The value of `EmbeddingCache.epoch` before the rows were encoded. If the epoch has changed, the
            rows are outdated and are rejected. None: the current epoch. `Claim.put` passes the epoch of the
            claim.
        encode_ms
            Encode time in milliseconds that a hit saves, for the policy ``"cost"``, for `CacheStats`, and for
            tiers that have a `worth`. None: an estimate, proportional to the number of rows.
        tier
            ``"device"``; ``"host"``: only in the host tier, so that no device entry is evicted; or
            ``"both"``: in the device tier with a host copy, so that a later demotion needs no copy. If one of
            the tiers rejects the rows, ``"both"`` writes neither.
        tenant
            Name of the tenant whose rows these are: a label for `forget_tenant`. It is not a part of `key`:
            keys of two tenants differ if they were made with different `Namespace.tenant`.

        Returns
        -------
        bool
            False if the rows were rejected: they need more pages than are free or evictable (leased pages are
            not), `epoch` is not the current epoch, or another thread called `clear`, `advance_epoch`,
            `close`, or `forget` or `forget_tenant` of these rows during the call. In the first two cases
            `put` evicts no entry and keeps the entry under `key`. In all cases the rejection is counted in
            `CacheStats.rejections`. The first rejection for each reason also logs a warning.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes, `rows` is not of shape ``(num_rows, width)``, the width of `rows`
            does not divide `row_width`, `epoch` is negative, `encode_ms` is negative or not finite, or `tier`
            is unknown or needs a host tier that the cache does not have.
        TypeError
            If `key` is not bytes, `rows` is not a dense tensor of float32, float16 or bfloat16 on the CPU or
            CUDA, `epoch` is not an int, `encode_ms` is not a number, or `tier` or `tenant` is not a str.
        RuntimeError
            If the cache was closed. If the current stream is cudaStreamPerThread, a different stream in each
            thread; nothing is evicted then.

        Notes
        -----
        During the copy, the entries that are being demoted to free pages cannot be looked up. The same is
        true of the entry that is replaced, if its pages are needed. If the copy fails or is interrupted,
        these entries leave the cache, and nothing is inserted.

        Copies to the host tier run on the cache's own stream, and the current stream does not wait for them.
        With ``tier="host"``, rows of a GPU are first copied to GPU memory, which is freed after the copy.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4)
        >>> cache.put(bytes(32), torch.ones(4, 4), encode_ms=27.0)
        True
        """
        check_key(key)
        rows = check_rows(rows, self.row_width, True)
        if tier != "device":
            check_tier(tier, self.has_host_tier)
        reservation = self._reserve(key, rows.shape[0], rows.shape[1], epoch, encode_ms, tier, tenant)
        if reservation is None:
            return False
        with reservation:
            reservation.write_checked(rows)
            return reservation.commit()

    def reserve(
        self,
        key: bytes,
        num_rows: int,
        *,
        epoch: int | None = None,
        encode_ms: float | None = None,
        row_width: int | None = None,
        contiguous: bool = False,
        tenant: str = "",
    ) -> Reservation | None:
        """Reserve device pages for the rows of `key`: a `put` whose rows are written and inserted later.

        This call evicts the entries whose pages it needs. Their copies to the host tier run on the cache's
        own stream, and the first write to the pages waits for the copies. If you reserve before the rows are
        encoded, the copies run during the encode.

        With ``contiguous=True`` the pages are one run of adjacent pages, and this call evicts nothing. It is
        for a caller that chooses itself which entries leave the device tier, with `demote` and `discard`, and
        that reads the rows as one tensor.

        Parameters
        ----------
        key
            32 bytes.
        num_rows
            Number of rows that will be written.
        epoch, encode_ms
            As in `put`.
        row_width
            Elements of each row; a divisor of the cache's `row_width`. None: the cache's `row_width`.
        contiguous
            Whether the pages must be one run of adjacent pages, so that `Reservation.segments`, and later
            `Lease.segments`, return one view. It is taken from the shortest run of free pages that is long
            enough. Pages of earlier epochs are freed before; no entry of this epoch is evicted.
        tenant
            As in `put`.

        Returns
        -------
        Reservation or None
            None if the rows are rejected, as in `put`. With ``contiguous=True``, also None if no run of free
            pages is long enough: this is neither counted nor logged, and nothing changes. Then free pages, or
            call `compact`, and reserve again. Rows of another epoch, and rows that need more pages than the
            tier has, are rejected as in `put`.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes, `num_rows` or `epoch` is negative, `encode_ms` is negative or not
            finite, or `row_width` does not divide the cache's.
        TypeError
            If `key` is not bytes, `num_rows`, `epoch` or `row_width` is not an int, `encode_ms` is not a
            number, `contiguous` is not a bool, or `tenant` is not a str.
        RuntimeError
            If the cache was closed. If the current stream is cudaStreamPerThread; nothing is evicted then.

        Notes
        -----
        Until the reservation is committed or cancelled, no other entry can use its pages, and the entries
        that are being demoted to free its pages cannot be looked up. If the reservation is cancelled, these
        entries leave the cache.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4)
        >>> with cache.reserve(bytes(32), 2) as reservation:
        ...     reservation.write(torch.ones(2, 4))  # or store=[reservation] of `scatter_embeddings`
        ...     reservation.commit()
        True
        >>> print(cache.reserve(bytes([1]) * 32, 2, contiguous=True))  # the one page is not free
        None
        """
        check_key(key)
        width = to_row_width("row_width", row_width, self.row_width)
        check_bool("contiguous", contiguous)
        return self._reserve(key, to_rows(num_rows), width, epoch, encode_ms, "device", tenant, contiguous)

    def _reserve(
        self,
        key: bytes,
        num_rows: int,
        row_width: int,
        epoch: int | None,
        encode_ms: float | None,
        tier: str,
        tenant: str,
        contiguous: bool = False,
    ) -> Reservation | None:
        """`reserve` in a tier, with a key and numbers that were checked."""
        if epoch is not None:
            epoch = min(to_int("epoch", epoch, 0), MOST_ROWS)
        cost = to_cost(encode_ms, num_rows)
        if type(tenant) is not str:
            check_tenant(tenant)
        offer = encode_ms is not None and cost >= self._write_back_ms
        if encode_ms is not None and self.encode_times is not None:
            self.encode_times.note(num_rows, row_width, cost)
        if contiguous:
            return self._coordinator.write_contiguous(key, num_rows, row_width, cost, epoch, tenant, offer)
        return self._coordinator.write(key, num_rows, row_width, cost, epoch, tier, tenant, offer)

    def discard(self, key: bytes, *, tier: str | None = None) -> bool:
        """Drop the entry under `key`. Counts as an eviction if the entry leaves the cache, and not as a miss.

        Leases on the entry stay readable. An entry that is being demoted, and that no look-up finds for this
        reason, is dropped, too. A promotion of the entry inserts nothing. But `discard` does not cancel a
        `put` or reservation under this key: it may insert its rows later.

        The tiers erase the entries of the key, too, whatever their tenant and number of rows. The call does
        not wait for that. A row that is being fetched does not enter the cache. `forget` waits.

        Parameters
        ----------
        key
            32 bytes.
        tier
            None: from every tier. ``"host"``: only from the host tier. Then an entry of the device tier loses
            its host copy and stays, and an entry that is only in the host tier leaves the cache. The tiers
            below keep theirs.

        Returns
        -------
        bool
            Whether an entry, or a host copy, was dropped.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes, or `tier` is neither None nor ``"host"``.
        TypeError
            If `key` is not bytes, or `tier` is neither None nor a str.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4)
        >>> cache.put(bytes(32), torch.ones(4, 4))
        True
        >>> cache.discard(bytes(32)), cache.discard(bytes(32)), cache.stats().misses
        (True, False, 0)
        """
        check_key(key)
        if tier is None:
            return self._ledger.discard(key) if self._lower is None else self._lower.discard(key)
        check_discard_tier(tier)
        return self._ledger.discard_from_host(key)

    def evict(self, key: bytes) -> bool:
        """Drop the entry under `key` from the device tier and the host tier, as an eviction does.

        For a caller that chooses itself which entries leave the cache. As `discard`, but the tiers below the
        host tier keep the entry.

        Returns
        -------
        bool
            Whether there was an entry.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes.
        TypeError
            If `key` is not bytes.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4)
        >>> cache.put(bytes(32), torch.ones(4, 4)), cache.evict(bytes(32)), cache.evict(bytes(32))
        (True, True, False)
        """
        check_key(key)
        return self._ledger.discard(key)

    def offer(self, key: bytes) -> None:
        """Offer the entry under `key` to the tiers below the host tier now, whatever its number of hits.

        For a caller whose hits the cache does not see, because it keeps leases. The call waits for no tier.
        An entry that was offered before, or that is not in the cache, is not offered. Without tiers, the call
        does nothing.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes.
        TypeError
            If `key` is not bytes.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> from vitcache.tiers import MemoryTier
        >>> options = dict(dtype=torch.float32, device="cpu", device_bytes=4096, host_bytes=4096)
        >>> with EmbeddingCache(4, tiers=[MemoryTier("1MiB")], **options) as cache:
        ...     cache.put(bytes(32), torch.ones(3, 4))
        ...     cache.offer(bytes(32))
        ...     cache.flush(timeout_s=60), cache.stats().tiers[0].stored
        True
        (True, 1)
        """
        check_key(key)
        self._ledger.check_open()
        if self._lower is not None:
            self._ledger.offer(key)
            self._coordinator.drain()

    def forget(self, key: bytes, *, timeout_s: float | None = 5.0) -> int:
        """Drop the rows of `key` from every tier, and keep pending rows from being inserted.

        As `discard`, and a reservation or promotion under the key that is open now inserts nothing, nor does
        a `put` of another thread that runs now: their `commit` returns False, which counts as a rejection
        unless it is a promotion. A `put` that is called later inserts its rows.

        If the cache has tiers, the call waits until each of them has erased the entries of the key, whatever
        their weights, tenant and number of rows, so that they cannot be fetched any more, also after a
        restart.

        Parameters
        ----------
        key
            32 bytes.
        timeout_s
            Seconds to wait at most. None: no limit. The device tier and the host tier need no wait.

        Returns
        -------
        int
            Number of entries that were dropped from the device tier and the host tier, where a host copy is
            not counted, and that were erased in each tier below, together.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes, or `timeout_s` is negative or not finite.
        TypeError
            If `key` is not bytes, or `timeout_s` is neither None nor a number.
        RuntimeError
            If the cache was closed, or a tier could not erase the entries. The message names the tier, which
            erases them before it is used again. If the process ends before that, they stay in the tier.
        TimeoutError
            If a tier has not erased the entries within `timeout_s`. The message names the tier.

        Notes
        -----
        After an exception, the entries of the device tier and of the host tier are dropped. Leases on the
        entry stay readable. The bytes of the rows stay in memory until other rows overwrite
        them.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=128, page_rows=4)
        >>> reservation = cache.reserve(bytes(32), 4)
        >>> cache.put(bytes(32), torch.ones(4, 4))
        True
        >>> cache.forget(bytes(32)), bytes(32) in cache, reservation.commit()
        (1, False, False)
        """
        check_key(key)
        timeout_s = to_timeout("timeout_s", timeout_s)
        if self._lower is None:
            return self._coordinator.forget(key)
        return self._lower.forget(timeout_s, key=key)

    def forget_tenant(self, tenant: str, *, timeout_s: float | None = 5.0) -> int:
        """Drop all rows of a tenant from every tier: `forget` of each key that was inserted for it.

        Rows are of the tenant that was given to `put` or `reserve`, by default ``""``. The call looks at
        every entry. The tiers, and the exceptions, are as in `forget`.

        Parameters
        ----------
        tenant
            Name of the tenant.
        timeout_s
            As in `forget`.

        Returns
        -------
        int
            Number of entries that were dropped and erased, as in `forget`.

        Raises
        ------
        ValueError
            If `timeout_s` is negative or not finite.
        TypeError
            If `tenant` is not a str, or `timeout_s` is neither None nor a number.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=128, page_rows=4)
        >>> cache.put(bytes(32), torch.ones(4, 4), tenant="one")
        True
        >>> cache.put(bytes([1]) * 32, torch.ones(4, 4), tenant="two")
        True
        >>> cache.forget_tenant("one"), len(cache)
        (1, 1)
        """
        check_tenant(tenant)
        timeout_s = to_timeout("timeout_s", timeout_s)
        if self._lower is None:
            return self._coordinator.forget_tenant(tenant)
        return self._lower.forget(timeout_s, tenant=tenant_label(tenant))

    def copy_to_host(self, key: bytes) -> bool:
        """Make a host copy of a device entry in free host pages, so that a later `demote` needs no copy.

        This is the early copy that `expect` makes, of an entry that the caller chooses. The entry may be
        leased. No entry is evicted; host pages of earlier epochs are freed if they are needed.

        Returns
        -------
        bool
            Whether the entry has a host copy now. False, and nothing changes, if the device tier has no entry
            under `key`, if the cache has no host tier, or if too few host pages are free.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes.
        TypeError
            If `key` is not bytes.
        RuntimeError
            If the cache was closed. If the current stream is cudaStreamPerThread; nothing changes then.

        Notes
        -----
        On CUDA the copy runs on the cache's own stream, and neither the host nor the current stream waits for
        it. If the copy fails, the entry stays as it was. While another thread copies or moves the entry, the
        call returns False.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(
        ...     4, dtype=torch.float32, device="cpu", device_bytes=64, host_bytes=64, page_rows=4
        ... )
        >>> cache.put(bytes(32), torch.ones(4, 4))
        True
        >>> cache.copy_to_host(bytes(32)), cache.stats().writebacks
        (True, 1)
        """
        check_key(key)
        return self._coordinator.copy_to_host(key)

    def demote(self, key: bytes) -> bool:
        """Move a device entry to the host tier, and free its device pages.

        If the entry has no host copy, `copy_to_host` makes it first. With a host copy, nothing is copied. No
        entry is evicted. Counts as a demotion.

        Returns
        -------
        bool
            Whether the entry was demoted. False, and nothing changes, if the device tier has no entry under
            `key`, if the entry is leased, or if it has no host copy and `copy_to_host` returns False.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes.
        TypeError
            If `key` is not bytes.
        RuntimeError
            If the cache was closed. If the current stream is cudaStreamPerThread; nothing changes then.

        Notes
        -----
        The device pages can be reserved at once. The first write to them waits for the copy to the host tier
        and for the streams that read them.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(
        ...     4, dtype=torch.float32, device="cpu", device_bytes=64, host_bytes=64, page_rows=4
        ... )
        >>> cache.put(bytes(32), torch.ones(4, 4))
        True
        >>> cache.demote(bytes(32)), cache.get(bytes(32)).tier
        (True, 'host')
        """
        check_key(key)
        return self._coordinator.demote(key)

    def compact(self) -> bool:
        """Move the device entries to the lowest pages, so that all free device pages are one run at the end.

        Call it if `reserve` with ``contiguous=True`` finds no run although enough pages are free. Rows that
        lay in one run stay in one run. The host tier, the order of eviction and all counts of hits stay as
        they are.

        Returns
        -------
        bool
            False, and nothing changes, if a device page is leased, reserved or being copied to the host tier.

        Raises
        ------
        RuntimeError
            If the cache was closed. If the current stream is cudaStreamPerThread; nothing changes then.

        Notes
        -----
        The moves run on the current stream, behind the last reads and writes of the entries that move. The
        host does not wait, and no memory is allocated. Keep no view of a released lease's pages: they contain
        other rows afterwards.

        During the call, look-ups of other threads miss the entries that move. If a move fails or is
        interrupted, these entries leave the device tier: the ones with a host copy are demoted, the other
        ones leave the cache.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=192, page_rows=4)
        >>> first, second, third = bytes(32), bytes([1]) * 32, bytes([2]) * 32
        >>> cache.put(first, torch.ones(4, 4)), cache.put(second, torch.ones(4, 4)), cache.discard(first)
        (True, True, True)
        >>> print(cache.reserve(third, 8, contiguous=True))  # pages 0 and 2 are free
        None
        >>> cache.compact(), len(cache.reserve(third, 8, contiguous=True).segments())
        (True, 1)
        """
        return self._coordinator.compact()

    def take_evicted(self) -> list[bytes]:
        """Return the keys whose last copy has left the cache since the last call, and forget them.

        An entry leaves when it is evicted and not demoted, by `discard`, when a look-up expects another
        number or width of rows, or when its rows do not match their checksum. A key that is in the cache
        again is not returned. Each key is returned once; the order is that in which the entries left. If more
        than `record_evictions` keys have left, only the last ones are returned. `clear` and `advance_epoch`
        empty the record, because then all keys have left.

        Raises
        ------
        RuntimeError
            If the cache was made with ``record_evictions=0``, or was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(
        ...     4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4, record_evictions=100
        ... )
        >>> cache.put(bytes(32), torch.ones(4, 4)), cache.put(bytes([1]) * 32, torch.ones(4, 4))
        (True, True)
        >>> cache.take_evicted() == [bytes(32)], cache.take_evicted()
        (True, [])
        """
        evicted: list[bytes] | None = self._ledger.take_evicted()
        if evicted is None:
            raise RuntimeError("the cache records no evictions: record_evictions is 0, it must be at least 1")
        return evicted

    def pages_for(self, num_rows: int, width: int | None = None) -> int:
        """Return how many pages an entry of `num_rows` rows occupies: at least one.

        Parameters
        ----------
        num_rows, width
            Number of rows, and elements of each row; see `reserve`. A page has
            ``page_rows * (row_width // width)`` rows.

        Raises
        ------
        ValueError
            If `num_rows` is negative, or `width` does not divide the cache's `row_width`.
        TypeError
            If a number is not an int.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=1 << 10, page_rows=16)
        >>> cache.pages_for(17), cache.pages_for(17, width=2), cache.device_pages
        (2, 1, 4)
        """
        self._ledger.check_open()
        width = to_row_width("width", width, self.row_width)
        page_rows = self.page_rows * (self.row_width // width)
        return max(1, -(-to_int("num_rows", num_rows, 0) // page_rows))

    def has_room(self, num_rows: int, *, row_width: int | None = None) -> bool:
        """Whether `put` would admit `num_rows` rows now: enough pages are neither leased nor pending.

        Raises
        ------
        ValueError
            If `num_rows` is negative, or `row_width` does not divide the cache's.
        TypeError
            If a number is not an int.
        RuntimeError
            If the cache was closed.
        """
        width = to_row_width("row_width", row_width, self.row_width)
        num_pages = self._device_tier.pages_for(to_rows(num_rows), width)
        self._coordinator.drain()
        return num_pages <= self._device_tier.num_available

    def expect(self, num_rows: Sequence[int], *, row_width: int | Sequence[int | None] | None = None) -> None:
        """Make early copies of the entries that a `put` of items with `num_rows` rows would evict.

        An early copy is a copy in the host tier of an entry that stays in the device tier. Call `expect`
        before the items are encoded. The copies then run during the encode, and a later `put` of the items
        need not make them. When an entry with an early copy is evicted from the device tier, it is demoted
        without another copy, unless the host tier has evicted the early copy. Without a host tier, or if
        enough device pages are free, `expect` does nothing.

        Parameters
        ----------
        num_rows
            Number of rows of each item.
        row_width
            Elements of each row, as in `reserve`: one int for all items, or one int or None per item.

        Raises
        ------
        ValueError
            If a number is negative, a width does not divide the cache's, or `row_width` does not have one
            number per item.
        TypeError
            If a number is not an int.
        RuntimeError
            If the cache was closed. If the current stream is cudaStreamPerThread.

        Notes
        -----
        On CUDA the copies run on the cache's own stream, and neither the host nor the current stream waits
        for them. On the CPU the copies are complete when the call returns. If the host tier is full, this
        call evicts host entries to free pages for the copies.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(
        ...     4, dtype=torch.float32, device="cpu", device_bytes=64, host_bytes=64, page_rows=4
        ... )
        >>> cache.put(bytes(32), torch.ones(4, 4))
        True
        >>> cache.expect([4])  # copies the entry; now encode the next item
        >>> cache.stats().writebacks, cache.stats().demotions
        (1, 0)
        """
        if not isinstance(num_rows, Sequence) or isinstance(num_rows, str | bytes):
            kind = type(num_rows).__name__
            raise TypeError(f"num_rows must be a sequence of ints, got {num_rows!r} of type {kind}")
        counts = [to_rows(number) for number in num_rows]
        widths = [self.row_width] * len(counts)
        if row_width is not None:
            widths = check_row_widths(row_width, len(counts), self.row_width)
        self._coordinator.expect(list(map(self._device_tier.pages_for, counts, widths)))

    def promote(self, lease: Lease, *, contiguous: bool = False) -> Reservation | None:
        """Reserve device pages for a copy of a host entry, so that later hits read it in the device tier.

        Write the leased rows to the reservation, call `Reservation.commit`, and release the lease. The best
        way to write them is the launch that places them: `scatter_embeddings` and `embed_tokens`, with the
        lease as the source and ``store=[reservation]``, read the rows from host memory once. If no launch
        places them, pass the lease to `Reservation.write`. After the commit, the entry is in the device tier,
        and its pages in the host tier are its host copy. As `reserve` does, this call evicts the entries
        whose device pages it needs.

        The caller decides when to promote. A good rule is to promote an entry at its second hit in the host
        tier: ``lease.tier == "host" and lease.hits > 1``.

        Parameters
        ----------
        lease
            A lease that `get` of this cache returned.
        contiguous
            As in `reserve`: the pages are one run of free pages, and no entry is evicted.

        Returns
        -------
        Reservation or None
            None if the entry is in the device tier, has left the cache, or needs more device pages than are
            free or evictable; with ``contiguous=True``, if no run of free pages is long enough. Then no entry
            changes, and nothing is logged or counted.

        Raises
        ------
        ValueError
            If `lease` is a lease of another cache.
        TypeError
            If `lease` is not a `Lease`, or `contiguous` is not a bool.
        RuntimeError
            If the lease was released, or the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(
        ...     4, dtype=torch.float32, device="cpu", device_bytes=64, host_bytes=64, page_rows=4
        ... )
        >>> first, second = bytes(32), bytes([1]) * 32
        >>> cache.put(first, torch.ones(4, 4)), cache.put(second, torch.ones(4, 4))  # demotes the first
        (True, True)
        >>> with cache.get(first) as lease, cache.promote(lease) as reservation:
        ...     reservation.write(lease)
        ...     print(lease.tier, reservation.commit())
        host True
        >>> cache.get(first).tier
        'device'
        """
        if not isinstance(lease, Lease):
            raise TypeError(f"lease must be a Lease, got {type(lease).__name__}")
        source = self._ledger.lease_entry(lease)
        if source is None:
            raise ValueError(f"lease of {lease.num_rows} rows is of another cache, it must be of this one")
        check_bool("contiguous", contiguous)
        return self._coordinator.promote(source, contiguous)

    def get(self, key: bytes, *, num_rows: int | None = None, row_width: int | None = None) -> Lease | None:
        """Look up `key` in both tiers. Return a lease on its rows, or None if it is a miss.

        Parameters
        ----------
        key
            32 bytes.
        num_rows
            Number of rows that the caller expects. If the entry has another number of rows, it is dropped,
            and the look-up is a miss. None: any number.
        row_width
            Elements of each row that the caller expects, in the same way. None: any width.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes, `num_rows` is negative, or `row_width` does not divide the cache's.
            Then the entry is not dropped.
        TypeError
            If `key` is not bytes, or `num_rows` or `row_width` is not an int.
        RuntimeError
            If the cache was closed.

        Notes
        -----
        `get` copies no rows: an entry in the host tier stays in the host tier; see `promote`. `get` queues no
        work on a stream; `Lease.use` does.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4)
        >>> cache.put(bytes(32), torch.ones(3, 4))
        True
        >>> with cache.get(bytes(32)) as lease:
        ...     lease.num_rows
        3
        >>> print(cache.get(bytes(32), num_rows=4))  # the entry has three rows: it is dropped
        None
        """
        lease: Any = self._get(key, num_rows) if row_width is None else NotImplemented
        if lease is NotImplemented:  # an argument is not a plain one, or released leases wait
            check_key(key)
            rows = -1 if num_rows is None else to_rows(num_rows)
            width = -1 if row_width is None else to_row_width("row_width", row_width, self.row_width)
            self._coordinator.drain()
            [lease] = self._ledger.get_many([key], [rows], [width])
        if lease is not None and self._coordinator.has_checksums:
            return self._coordinator.check_intact(lease)
        found: Lease | None = lease
        return found

    def get_many(
        self,
        keys: Sequence[bytes],
        num_rows: int | Sequence[int | None] | None = None,
        row_width: int | Sequence[int | None] | None = None,
    ) -> list[Lease | None]:
        """Look up many keys in one step of the cache. Return one lease per key, or None for a miss.

        The results, the counts and the order of eviction are those of one `get` per key, in order. No other
        caller changes the cache between two of the look-ups.

        Parameters
        ----------
        keys
            Keys of 32 bytes. A key may occur several times; each occurrence has its own lease.
        num_rows
            Number of rows that the caller expects, as in `get`: one int for all keys, or one int or None per
            key. None: any number.
        row_width
            Elements of each row that the caller expects, in the same way.

        Raises
        ------
        ValueError
            If a key is not of 32 bytes, a number of rows is negative, a width does not divide the cache's, or
            `num_rows` or `row_width` does not have one number per key. Then no key is looked up.
        TypeError
            If a key is not bytes, a number is not an int, or `keys` is not a list or tuple.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4)
        >>> cache.put(bytes(32), torch.ones(3, 4))
        True
        >>> first, second = cache.get_many([bytes(32), bytes([1]) * 32], num_rows=[3, 4])
        >>> first.num_rows, second
        (3, None)
        >>> first.release()
        """
        keys = check_keys(keys)
        counts = [-1] * len(keys) if num_rows is None else check_num_rows(num_rows, len(keys))
        widths = None if row_width is None else check_row_widths(row_width, len(keys), self.row_width)
        if self._ledger.is_due:
            self._coordinator.drain()
        leases: list[Lease | None] = self._ledger.get_many(keys, counts, widths)
        if self._coordinator.has_checksums:
            try:
                return [lease if lease is None else self._coordinator.check_intact(lease) for lease in leases]
            except BaseException:
                release_all([lease for lease in leases if lease is not None])
                raise
        return leases

    def begin_fetch(
        self,
        keys: Sequence[bytes],
        num_rows: int | Sequence[int],
        *,
        row_width: int | Sequence[int | None] | None = None,
        tenant: str = "",
        evict: bool = True,
    ) -> Fetch:
        """Ask the tiers for the entries that are not in the cache, and return at once.

        Entries that a tier has are copied to the host tier and then found by look-ups. The tiers are asked
        one after the other, the nearest first. An entry that is being fetched already is not fetched twice.
        A row that arrives after the deadline still enters the cache, unless its key is there already, was
        discarded or forgotten, or the epoch changed. Nothing is fetched if a tier is left alone after a
        failure, or if too many fetches wait. Without `tiers` the result is done at once.

        Parameters
        ----------
        keys
            Keys of 32 bytes.
        num_rows
            Number of rows of each entry: one int for all keys, or one int per key. An entry of another number
            of rows is not found.
        row_width
            Elements of each row, in the same way. None: the cache's `row_width`.
        tenant
            The `tenant` argument of the `put` of these rows. Entries of another tenant are not found.
        evict
            Whether host entries may be evicted for the rows. False: only free host pages are used, for a
            caller that chooses itself which entries leave the host tier.

        Raises
        ------
        ValueError
            If a key is not of 32 bytes, a number of rows is negative, a width does not divide the cache's, or
            `num_rows` or `row_width` does not have one number per key.
        TypeError
            If a key is not bytes, a number is not an int, `keys` is not a list or tuple, `tenant` is not a
            str, or `evict` is not a bool.
        RuntimeError
            If the cache was closed.

        Notes
        -----
        Threads: any thread may call it. It waits for no tier and no stream. The worker of a tier writes host
        pages on the host, after all work on them is complete.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache, WriteBack
        >>> from vitcache.tiers import MemoryTier
        >>> tier, key = MemoryTier("1MiB"), bytes(32)
        >>> options = dict(
        ...     dtype=torch.float32, device="cpu", device_bytes=4096, host_bytes=4096, tiers=[tier],
        ...     weights_name="some model, revision 1", write_back=WriteBack(hits=0),
        ... )
        >>> with EmbeddingCache(4, **options) as cache:
        ...     cache.put(key, torch.ones(3, 4))
        True
        >>> with EmbeddingCache(4, **options) as cache:  # as after a restart
        ...     fetch = cache.begin_fetch([key], 3)  # now do other work
        ...     print(fetch.wait(timeout_s=60), cache.get(key).tier)
        [True] host
        """
        keys, counts, widths = check_wanted(keys, num_rows, row_width, self.row_width)
        check_tenant(tenant)
        check_bool("evict", evict)
        return self._begin_fetch(keys, counts, widths, tenant, None, evict)

    def fetch(
        self,
        keys: Sequence[bytes],
        num_rows: int | Sequence[int],
        *,
        row_width: int | Sequence[int | None] | None = None,
        tenant: str = "",
        timeout_s: float | None = None,
    ) -> list[bool]:
        """Call `begin_fetch`, wait, and return which keys are in the cache.

        Parameters
        ----------
        keys, num_rows, row_width, tenant
            As in `begin_fetch`.
        timeout_s
            Seconds to wait at most. None: the cache's `fetch_timeout_s`.

        Returns
        -------
        list of bool
            For each key, whether the cache has an entry under it now.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As `begin_fetch`; also if `timeout_s` is negative or not finite, or neither None nor a number.

        Examples
        --------
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, device="cpu", device_bytes=4096)
        >>> cache.fetch([bytes(32)], 3)  # no tiers
        [False]
        """
        keys, counts, widths = check_wanted(keys, num_rows, row_width, self.row_width)
        check_tenant(tenant)
        timeout_s = to_timeout("timeout_s", timeout_s)
        return self._begin_fetch(keys, counts, widths, tenant, timeout_s).wait()

    def _begin_fetch(
        self,
        keys: list[bytes],
        counts: list[int],
        widths: list[int],
        tenant: str,
        timeout_s: float | None,
        evict: bool = True,
    ) -> Fetch:
        if self._lower is None:
            self._ledger.check_open()
            return Fetch(keys, [], 0.0, self._ledger, lambda: None)
        return self._lower.begin_fetch(keys, counts, widths, tenant_label(tenant), timeout_s, evict)

    def flush(self, timeout_s: float | None = 5.0) -> bool:
        """Wait until every store that waits now is done or was left out. Without tiers, it returns True.

        Parameters
        ----------
        timeout_s
            Seconds to wait at most. None: no limit.

        Returns
        -------
        bool
            False if a store was not done within `timeout_s`.

        Raises
        ------
        ValueError
            If `timeout_s` is negative, infinite or NaN.
        TypeError
            If `timeout_s` is neither None nor a number, or is a bool.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> from vitcache import EmbeddingCache
        >>> with EmbeddingCache(4, device="cpu", device_bytes=4096) as cache:
        ...     cache.flush()
        True
        """
        timeout_s = to_timeout("timeout_s", timeout_s)
        self._coordinator.drain()
        return self._lower is None or self._lower.flush(timeout_s)

    def claim(self, key: bytes) -> Claim:
        """Claim the right to encode a missing `key`, so that only one caller encodes it. Never waits.

        Parameters
        ----------
        key
            32 bytes.

        Returns
        -------
        Claim
            If `Claim.is_mine` is true, this caller is the owner. Look the key up again, because another
            caller may have inserted it since the miss. If it is still missing, encode the item and pass its
            rows to `Claim.put`. Release the claim in any case. If `Claim.is_mine` is false, another caller is
            the owner: call `Claim.wait`, and then look the key up again. A claim that was made in an earlier
            epoch does not make its caller the owner in this epoch.

        Raises
        ------
        ValueError
            If `key` is not of 32 bytes.
        TypeError
            If `key` is not bytes.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4)
        >>> with cache.claim(bytes(32)) as first, cache.claim(bytes(32)) as second:
        ...     first.is_mine, second.is_mine
        (True, False)
        """
        check_key(key)
        return claim(self._ledger, key, self.epoch, self)

    @property
    def epoch(self) -> int:
        """The number of calls of `advance_epoch` and `clear` so far.

        Read it before you encode, and pass it to `put`: if `advance_epoch` or `clear` is called during the
        encode, `put` rejects the rows. Raises RuntimeError if the cache was closed.
        """
        return self._ledger.epoch

    def __contains__(self, key: bytes) -> bool:
        """Whether an entry is stored under `key`. Counts neither as a hit nor as a miss."""
        check_key(key)
        return self._ledger.contains(key)

    def __len__(self) -> int:
        """Return the number of entries that can be looked up."""
        return len(self._ledger)

    def stats(self) -> CacheStats:
        """Return a snapshot of all counts and sizes."""
        self._coordinator.drain()
        lower = () if self._lower is None else self._lower.stats()
        return make_stats(
            *self._ledger.stats(),
            lower,
            {} if self.encode_times is None else self.encode_times.by_width(),
        )

    def clear(self, *, weights_name: str | bytes | None = None) -> None:
        """Begin a new epoch, drop all entries and free their pages. Leased pages are freed when released.

        `weights_name`, the tiers and the exceptions are as in `advance_epoch`.
        """
        check_weights_name(weights_name)
        self._coordinator.drain()
        self._begin_epoch(self._ledger.clear, weights_name)

    def advance_epoch(self, *, weights_name: str | bytes | None = None) -> None:
        """Begin a new epoch, in constant time. Entries of earlier epochs cannot be looked up any more.

        Call it when the model's weights have changed. The pages of the old entries count as in use until they
        are needed. They are freed before any entry of the new epoch is evicted.

        If the cache has tiers, their entries are out of reach in this process at once, and no process that
        opens the tiers later finds them: each tier revokes the name of the old weights. The call waits for
        that for at most 1 s, and logs an error if a tier needs longer.

        Parameters
        ----------
        weights_name
            The name of the new weights in the tiers, as in the constructor. The name may be the same as
            before: earlier entries are not found under it. None: a random name.

        Raises
        ------
        ValueError
            If `weights_name` is empty.
        TypeError
            If `weights_name` is neither None, a str nor bytes.
        RuntimeError
            If the cache was closed.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(4, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=4)
        >>> cache.put(bytes(32), torch.ones(3, 4))
        True
        >>> cache.advance_epoch()  # the weights have changed
        >>> print(cache.get(bytes(32)))
        None
        """
        check_weights_name(weights_name)
        self._begin_epoch(self._ledger.advance, weights_name)

    def _begin_epoch(self, advance: Callable[[], None], weights_name: str | bytes | None) -> None:
        if self._lower is None:
            advance()
        else:
            self._lower.advance(advance, weights_name)

    def check_integrity(self) -> None:
        """Check that each page has exactly one owner and that all counts are right.

        Raises
        ------
        RuntimeError
            If the cache is inconsistent, with every violation in the message; or if the cache was closed.
        """
        self._coordinator.drain()
        violations = self._ledger.find_violations()
        if violations:
            raise RuntimeError(f"the cache is inconsistent: {'; '.join(violations)}")

    def close(self) -> None:
        """Drop every entry, and free the memory once the last lease is released. A second call does nothing.

        After `close`, every other method raises RuntimeError. Rows of existing leases stay readable.

        If the cache has tiers, the stores that wait are finished and the tiers are closed, within 5 s in all.
        If a tier hangs, an error is logged, and its thread and the memory that it may write are left behind.
        """
        if self._lower is not None:
            self._lower.close()
        self._coordinator.close()

    def __enter__(self) -> EmbeddingCache:
        len(self)  # raises RuntimeError if the cache was closed
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __reduce_ex__ = refuse_copies("make another cache, and `put` the rows of `Lease.to_tensor` into it")

    @described
    def __repr__(self) -> str:
        try:
            stats = make_stats(*self._ledger.stats())  # `self.stats` would also settle releases
        except RuntimeError:
            return "closed"
        words = [
            describe_count(stats.entries, "entry"),
            f"device {describe_use(stats.device_bytes, stats.device_capacity_bytes)}",
        ]
        if self.has_host_tier:
            words.append(f"host {describe_use(stats.host_bytes, stats.host_capacity_bytes)}")
        has_lookups = stats.hits + stats.misses > 0
        words.append(f"hit rate {stats.hit_rate:.2f}" if has_lookups else "no look-ups")
        return ", ".join(words)
