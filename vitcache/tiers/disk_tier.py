"""`DiskTier`: a folder that keeps entries beyond the process, one file for each."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import SupportsIndex

import numpy as np

from vitcache.arguments import INT64_MAX, check_bool, shown, to_bytes, to_int
from vitcache.handles import described, refuse_copies
from vitcache.tiers.checks import check_parts
from vitcache.tiers.disk_index import DiskIndex
from vitcache.tiers.disk_sweep import DiskSweep
from vitcache.tiers.entry_files import ENTRIES, EntryFiles, has_file, remove_file
from vitcache.tiers.entry_read import Unreadable
from vitcache.tiers.erasure import erase_files
from vitcache.tiers.folders import MISSING, REFUSED, check_root, make_folder, open_folder
from vitcache.tiers.generations import begin_generation, read_generation
from vitcache.tiers.header import file_bytes, pack_name, unpack_name
from vitcache.tiers.protocol import EntryName, FetchOutcome, Transfer

logger = logging.getLogger("vitcache.tiers")

_LEAST_BYTES = 1 << 20
_STEPS_PER_CALL = 64  # of the sweep, in each call that writes
_MOST_USES = 4096  # that are kept in memory
_of_parents: list[DiskIndex] = []  # in a forked child; never freed, as the child must not close them


class DiskTier:
    """Keeps rows in a folder, so that they outlive the process. A `Tier`; several processes may share it.

    Each entry is one file with a header and a checksum of its rows. A file that does not match its name or
    its checksum is a miss, and is removed. The entries that were used longest ago are evicted.

    Only the effective user may read the files: folders have mode 700 and files 600. Rows are not encrypted.
    A local file system is needed: SQLite's write-ahead log does not work on network file systems.

    One thread at a time calls its methods, as a cache's worker thread does. `path`, `max_bytes` and the repr
    may be read by any thread. No method uses a stream.

    Parameters
    ----------
    path
        The folder. It is made with its parents; `open` raises PermissionError if it has another owner, or
        if its group or all users may write it.
    max_bytes
        Limit of the bytes of all files, as an int or a str such as ``"100GiB"``, at least 1 MiB. While
        processes write, each may exceed it by one entry.
    direct
        Whether rows are read and written without the page cache of the system (``O_DIRECT``) where memory
        and file system allow it. `metrics` reports ``direct`` as 0 if the file system has refused it.

    Raises
    ------
    TypeError
        If `path` is not a str or `os.PathLike`, `max_bytes` is not an int or a str, or `direct` not a bool.
    ValueError
        If `path` is empty, contains a NUL or cannot be encoded; if `max_bytes` is too small, not a size, or
        more than 2**63 - 1.

    Examples
    --------
    >>> import tempfile
    >>> from vitcache import DiskTier
    >>> folder = tempfile.mkdtemp()
    >>> tier = DiskTier(folder, "64MiB")
    >>> tier.open()
    >>> tier.metrics()["entries"]
    0
    >>> tier.close()
    """

    name = "disk"
    worth: float | None = None

    def __init__(
        self, path: str | os.PathLike[str], max_bytes: SupportsIndex | str, *, direct: bool = True
    ) -> None:
        check_bool("direct", direct)
        self.path = _absolute(path)
        self.capacity_bytes = to_int(
            "max_bytes", to_bytes("max_bytes", max_bytes, _LEAST_BYTES), None, INT64_MAX
        )
        self._direct = direct
        self._pid = 0  # of the process that has opened it; 0: it is closed
        self._index = DiskIndex(self.path)

    def open(self) -> None:
        """Open the folder, and make it if it does not exist.

        Raises
        ------
        RuntimeError
            If the tier is open.
        PermissionError
            If the folder has another owner, or if its group or all users may write it.
        NotADirectoryError
            If the path is not a folder.
        OSError
            If the folder cannot be made.
        """
        if self._pid == os.getpid():
            raise RuntimeError(
                f"the disk tier {self.path} is open; a DiskTier belongs to one cache at a time"
            )
        if self._pid:
            _of_parents.append(self._index)
        make_folder(self.path)
        check_root(self.path)
        self._owner = str(os.getpid()).encode() + secrets.token_bytes(16)
        self._files = EntryFiles(direct=self._direct)
        self._index = DiskIndex(self.path)
        self._sweep = DiskSweep(self.path, self._index)
        self._uses: dict[bytes, int] = {}  # packed names and times in ns, not written yet
        self._counts: Counter[str] = Counter()
        self._totals = (0, 0)
        try:
            self._index.open()
        except sqlite3.OperationalError as error:
            logger.warning(
                "disk tier %s: stores nothing, as its index cannot be opened: %s", self.path, error
            )
        self._pid = os.getpid()

    def register(self, memory: np.ndarray) -> None:
        """See `Tier.register`. All memory can be transferred."""
        self._check_open()

    def exists(self, names: Sequence[EntryName]) -> list[bool]:
        """See `Tier.exists`. Looks at the sizes of the files, and reads none."""
        with self._entries() as entries:
            return [entries is not None and has_file(entries, name) for name in names]

    def fetch(self, fetches: Sequence[Transfer]) -> list[FetchOutcome]:
        """See `Tier.fetch`. Up to five threads read and hash the rows."""
        outcomes = [FetchOutcome.MISS] * len(fetches)
        for fetch in fetches:
            check_parts(fetch)
        with self._entries() as entries:
            if entries is None:
                return outcomes
            for position, error in self._files.read(entries, fetches):
                name = fetches[position].name
                if error is None:
                    outcomes[position] = FetchOutcome.HIT
                    self._uses[pack_name(name)] = time.time_ns()
                elif isinstance(error, Unreadable):
                    outcomes[position] = self._drop(entries, name, error)
                elif not isinstance(error, FileNotFoundError):
                    if getattr(error, "errno", 0) == errno.EIO:  # a bad sector: do not read it again
                        self._remove(entries, name)
                    raise error
        if len(self._uses) > _MOST_USES:
            with suppress(sqlite3.OperationalError):
                self._write_uses()
        return outcomes

    def _drop(self, entries: int, name: EntryName, error: Unreadable) -> FetchOutcome:
        """Remove an entry whose file cannot be used."""
        self._remove(entries, name)
        if not error.is_damaged:
            return FetchOutcome.MISS
        self._counts["damaged"] += 1
        kind = f"damaged: {error.kind}"
        self._counts[kind] += 1
        if self._counts[kind] == 1:
            text = "disk tier %s: the file of an entry %s, so it is removed; later ones are only counted"
            logger.error(text, self.path, error.kind)
        return FetchOutcome.DAMAGED

    def _remove(self, entries: int, name: EntryName) -> None:
        try:
            remove_file(entries, name)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
        packed = pack_name(name)
        self._uses.pop(packed, None)
        try:
            self._index.remove([packed], lambda _: not has_file(entries, name))
        except sqlite3.OperationalError:  # another process has locked it
            self._sweep.restart()

    def store(self, stores: Sequence[Transfer]) -> list[bool]:
        """See `Tier.store`. False: the entry exceeds `max_bytes`, or the disk is full or read-only."""
        for store in stores:
            check_parts(store)
        self._check_open()
        try:
            self._prepare()
        except (OSError, sqlite3.OperationalError) as error:
            self._refuse(error)
            return [False] * len(stores)
        return [self._store(store) for store in stores]

    def _prepare(self) -> None:
        """Make missing folders and a missing index, and continue the sweep."""
        make_folder(self.path)
        if not self._index.is_current:
            self._index.open()
        if self._index.is_new:  # without the sizes of all files, the limit would not hold
            self._sweep.restart()
            self._index.is_new = False
            self._sweep.step()
        else:
            self._sweep.step(_STEPS_PER_CALL)

    def _store(self, store: Transfer) -> bool:
        name, size = store.name, file_bytes(store.name)
        if size > self.capacity_bytes:
            return False
        packed = pack_name(name)
        try:
            with open_folder(self.path) as root, open_folder(ENTRIES, root, make=True) as entries:
                is_new = not has_file(entries, name)
                if is_new:
                    self._evict(size, entries)
                    self._files.write(root, store)
                try:
                    self._index.insert([(packed, size, time.time_ns())], self._owner)
                except BaseException:
                    if is_new:
                        remove_file(entries, name)
                    raise
        except (OSError, sqlite3.OperationalError) as error:
            self._refuse(error)
            with suppress(sqlite3.OperationalError):  # its claim then ends by its time
                self._index.end_claim(packed, self._owner)
            return False
        return True

    def _refuse(self, error: OSError | sqlite3.OperationalError) -> None:
        """Count and log an error that says that the disk is full or may not be written. Raise any other."""
        if isinstance(error, OSError):
            is_refusal = error.errno in REFUSED
        else:
            is_refusal = not any(word in str(error) for word in ("locked", "busy", "locking"))
        if not is_refusal:
            raise error
        # Without the names of files, which differ from entry to entry.
        reason = error.strerror if isinstance(error, OSError) else error
        kind = f"refused: {reason}"
        self._counts[kind] += 1
        if self._counts[kind] == 1:
            text = "disk tier %s: an entry is not stored: %s; later ones are only counted"
            logger.warning(text, self.path, reason)

    def _evict(self, size: int, entries: int) -> None:
        """Evict entries until one of `size` bytes does not exceed the limit."""
        _, num_bytes = self._index.totals()
        if num_bytes + size <= self.capacity_bytes:
            return
        self._write_uses()
        self._counts["evictions"] += self._index.evict(
            lambda num_bytes: num_bytes + size - self.capacity_bytes,
            lambda packed: _remove_packed(entries, packed),
            time.time_ns(),
        )

    def _write_uses(self) -> None:
        uses, self._uses = self._uses, {}
        if uses:
            self._index.touch(uses)

    def claim(self, names: Sequence[EntryName], ttl_s: float) -> list[bool]:
        """See `Tier.claim`. A claim is a row of the index. This object may claim a name again."""
        present = self.exists(names)
        if not self._index.is_current:
            return [not is_there for is_there in present]  # `store` makes the index, or returns False
        absent = [pack_name(name) for name, is_there in zip(names, present, strict=True) if not is_there]
        claimed = iter(self._index.claim(absent, self._owner, time.time(), ttl_s) if absent else ())
        return [not is_there and next(claimed) for is_there in present]

    def erase(self, *, tenant: bytes | None = None, key: bytes | None = None) -> int:
        """See `Tier.erase`. Finds the files by their names, also those that the index lacks.

        The blocks of the files are not overwritten. An entry that another process stores later stays.
        """
        if tenant is None and key is None:
            raise ValueError("tenant and key are None, at least one must be given")
        is_indexed = self._erase_rows(tenant, key)  # first: a file that another process stores now has a row
        with self._entries() as entries:
            erased = 0 if entries is None else erase_files(entries, tenant, key)
            self._sweep.remove_temporary()
        self._uses = {
            packed: used for packed, used in self._uses.items() if not _is_named(packed, tenant, key)
        }
        if not is_indexed:
            self._sweep.restart()
        return erased

    def _erase_rows(self, tenant: bytes | None, key: bytes | None) -> bool:
        """Erase rows of the index. False: another process has locked it, or it is to be made again."""
        self._check_open()
        if not self._index.is_current:
            return False
        try:
            self._index.erase(tenant, key)
        except sqlite3.OperationalError:
            return False
        return True

    def generation(self, weights: bytes) -> int:
        """See `Tier.generation`. The generation is the size of a file, apart from the index."""
        self._check_open()
        try:
            with open_folder(self.path) as root:
                return read_generation(root, weights)
        except FileNotFoundError:
            return 0

    def revoke(self, weights: bytes) -> int:
        """See `Tier.revoke`."""
        self._check_open()
        with open_folder(self.path) as root:
            return begin_generation(root, weights)

    def metrics(self) -> Mapping[str, int]:
        """Return counts: those since `open`, and ``entries`` and ``bytes`` of all processes.

        ``damaged``: files that did not match; ``swept``: files and rows of the index that were repaired;
        ``rebuilt``: damaged indexes; ``direct``: 1 if direct I/O is used.
        """
        self._check_open()
        with suppress(sqlite3.OperationalError):
            self._totals = self._index.totals()
        entries, num_bytes = self._totals
        return {
            "entries": entries,
            "bytes": num_bytes,
            "evictions": self._counts["evictions"],
            "damaged": self._counts["damaged"],
            "swept": self._sweep.swept,
            "rebuilt": self._index.rebuilt,
            "direct": int(self._files.is_direct),
        }

    def close(self) -> None:
        """Write the times of use, and close the index. Does nothing if the tier is closed."""
        if self._pid != os.getpid():
            return
        self._pid = 0
        try:
            with suppress(sqlite3.OperationalError):
                self._write_uses()
        finally:
            self._index.close()
            self._files.close()

    @contextmanager
    def _entries(self) -> Iterator[int | None]:
        """Open the folder of the entries; None if it does not exist, or a link is in its place."""
        self._check_open()
        with ExitStack() as stack:
            entries = None
            try:
                root = stack.enter_context(open_folder(self.path))
                entries = stack.enter_context(open_folder(ENTRIES, root))
            except OSError as error:
                if error.errno not in MISSING:
                    raise
            yield entries

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            state = "closed" if not self._pid else f"open in process {self._pid}, not in this one"
            raise RuntimeError(f"the disk tier {self.path} is {state}")

    __reduce_ex__ = refuse_copies("open a second DiskTier of the same path")

    @described
    def __repr__(self) -> str:
        state = "open" if self._pid == os.getpid() else "closed"
        return f"{self.path}, at most {self.capacity_bytes} bytes, {state}"


def _absolute(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"path must be a str or os.PathLike, got {shown(path)} of type {type(path).__name__}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"path is {shown(text)}, which the file system cannot encode: {error}") from None
    if not text or "\0" in text:
        raise ValueError(f"path is {shown(text)}, it must not be empty or contain a NUL")
    return os.path.abspath(text)


def _remove_packed(entries: int, packed: bytes) -> None:
    remove_file(entries, unpack_name(packed))


def _is_named(packed: bytes, tenant: bytes | None, key: bytes | None) -> bool:
    name = unpack_name(packed)
    return (tenant is None or name.tenant == tenant) and (key is None or name.key == key)
