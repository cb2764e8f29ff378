"""`DiskSweep`: makes the index of a disk tier agree with its files, and removes unfinished files."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack

from vitcache.tiers.disk_index import DiskIndex
from vitcache.tiers.entry_files import ENTRIES, TEMPORARY, has_file
from vitcache.tiers.folders import ABSENT, open_folder, remove
from vitcache.tiers.header import file_bytes, name_at, pack_name, unpack_name

_TEMPORARY_NAME = re.compile(r"[0-9]{1,10}\.[0-9a-f]{16}\.part")
_NAMES_PER_STEP = 64


class DiskSweep:
    """One sweep of a tier's folder, in small steps. One thread at a time calls its methods.

    It removes temporary files whose writers have ended, inserts entries that the index lacks, with the time
    at which their file was written, and removes entries without a file from the index.

    Attributes
    ----------
    swept
        Number of files and of entries of the index that were removed or inserted.
    num_listed
        Number of folders that were listed.
    """

    def __init__(self, path: str, index: DiskIndex) -> None:
        self._path, self._index = path, index
        self.swept = self.num_listed = 0
        self.restart()

    def restart(self) -> None:
        """Begin again, after the index was made again."""
        self._steps: Iterator[None] | None = self._run()

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self._steps is None

    def step(self, most: int | None = None) -> None:
        """Do the next steps, at most `most`, each for one file or 64 entries of the index. None: all."""
        while self._steps is not None and most != 0:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
            except BaseException:
                self.restart()  # a generator that has raised is at its end
                raise
            if most is not None:
                most -= 1

    def remove_temporary(self) -> None:
        """Remove all temporary files whose writers have ended."""
        for _ in self._remove_temporary():
            pass

    def _run(self) -> Iterator[None]:
        yield from self._remove_temporary()
        for tenant in self._list(ENTRIES):
            for shard in self._list(ENTRIES, tenant):
                for file in self._list(ENTRIES, tenant, shard):
                    self._insert(tenant, shard, file)
                    yield
        last = b""
        while names := self._index.names_after(last, _NAMES_PER_STEP):
            self._remove_absent(names)
            last = names[-1]
            yield

    def _list(self, *folders: str) -> list[str]:
        """Return the names in a folder; none if it does not exist or is a symbolic link."""
        self.num_listed += 1
        try:
            with open_folder(self._path) as root:
                return _list_below(root, folders)
        except OSError as error:
            if error.errno in ABSENT:
                return []
            raise

    def _remove_temporary(self) -> Iterator[None]:
        for file in self._list(TEMPORARY):
            if not _TEMPORARY_NAME.fullmatch(file):
                continue
            try:
                with open_folder(self._path) as root, open_folder(TEMPORARY, root) as folder:
                    self.swept += _remove_unlocked(file, folder)
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
            yield

    def _insert(self, tenant: str, shard: str, file: str) -> None:
        name = name_at(tenant, file)
        if name is None or name.key[:1].hex() != shard:
            return
        packed = pack_name(name)
        if self._index.has([packed]):
            return
        try:
            with open_folder(self._path) as root, open_folder(ENTRIES, root) as entries:
                state = os.stat(f"{tenant}/{shard}/{file}", dir_fd=entries, follow_symlinks=False)
        except OSError as error:
            if error.errno in ABSENT:
                return
            raise
        if stat.S_ISREG(state.st_mode) and state.st_size == file_bytes(name):
            self._index.insert([(packed, state.st_size, min(state.st_mtime_ns, time.time_ns()))])
            self.swept += 1

    def _remove_absent(self, names: list[bytes]) -> None:
        with ExitStack() as stack:
            try:
                root = stack.enter_context(open_folder(self._path))
                entries = stack.enter_context(open_folder(ENTRIES, root))
                absent = [name for name in names if not has_file(entries, unpack_name(name))]
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                self.swept += self._index.remove(names, lambda _: True)
                return
            if absent:
                self.swept += self._index.remove(
                    absent, lambda name: not has_file(entries, unpack_name(name))
                )


def _list_below(folder: int, folders: tuple[str, ...]) -> list[str]:
    if not folders:
        return os.listdir(folder)
    with open_folder(folders[0], folder) as below:
        return _list_below(below, folders[1:])


def _remove_unlocked(file: str, folder: int) -> bool:
    """Remove a temporary file unless a process has locked it, which then still writes it."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in ABSENT:
            return remove(file, folder)
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return remove(file, folder)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
