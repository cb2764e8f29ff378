"""`DiskIndex`: the sizes, the last uses and the claims of entries of a disk tier, in an SQLite database.

The files are the truth. The index says how many bytes they have and which was used longest ago, so it may be
lost: the sweep of the tier finds the files again. Several processes may have it open.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

from vitcache.tiers.header import DIGEST_BYTES

logger = logging.getLogger("vitcache.tiers")

_T = TypeVar("_T")
_VERSION = 1
_WAIT_SECONDS = 0.5  # for another process that writes
FILE = "vitcache-index.db"
_FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal")
_SCHEMA = f"""
pragma journal_mode=wal;
begin immediate;
create table if not exists entries(
    name blob primary key, bytes integer not null, used integer not null) without rowid;
create index if not exists entries_by_use on entries(used);
create table if not exists claims(name blob primary key, owner blob not null, expires real not null)
    without rowid;
create table if not exists totals(entries integer not null, bytes integer not null);
insert into totals select 0, 0 where not exists (select 1 from totals);
create trigger if not exists inserted after insert on entries begin
    update totals set entries = entries + 1, bytes = bytes + new.bytes; end;
create trigger if not exists deleted after delete on entries begin
    update totals set entries = entries - 1, bytes = bytes - old.bytes; end;
pragma user_version={_VERSION};
commit;
"""


class DiskIndex:
    """One connection to the index. One thread at a time calls its methods.

    A method raises `sqlite3.OperationalError` if another process holds the database for too long, or if the
    folder cannot be written. A damaged database is replaced by an empty one, and the call repeated.

    Attributes
    ----------
    is_new
        Whether the database was made, or made again: it may lack entries. The tier resets it after a sweep.
    rebuilt
        Number of damaged databases that were replaced.
    """

    def __init__(self, root: str) -> None:
        self._root, self._path = root, os.path.join(root, FILE)
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self.is_new = False
        self.rebuilt = 0

    def open(self) -> None:
        """Open the database; make it if it does not exist."""
        self.close()
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                self.close()
                raise
            self._rebuild(error)

    def _connect(self) -> None:
        for file in _FILES:
            self._remove_foreign(os.path.join(self._root, file))
        try:
            # Only a new file is opened here: to close a descriptor of an open database would end its locks.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise sqlite3.OperationalError(f"cannot open {self._path}: {error}") from error
        connection = sqlite3.connect(
            self._path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection = connection
        connection.execute("pragma synchronous=off")
        # Without it, `replace` deletes a row and runs no trigger, and the totals drift.
        connection.execute("pragma recursive_triggers=on")
        (version,) = connection.execute("pragma user_version").fetchone()
        if version == 0:
            self.is_new = True
            connection.executescript(_SCHEMA)
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"version {version}, expected {_VERSION}")
        connection.execute("select name, used from entries limit 1").fetchall()
        connection.execute("select name, owner, expires from claims limit 1").fetchall()
        if connection.execute("select count(*) from totals").fetchone() != (1,):
            raise sqlite3.DatabaseError("no totals")
        state = os.stat(self._path)
        self._identity = state.st_dev, state.st_ino

    def _remove_foreign(self, path: str) -> None:
        """Remove a file that SQLite must not open: a link, or a file that also has a name elsewhere."""
        try:
            state = os.lstat(path)
        except OSError:
            return
        if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
            logger.warning("disk tier: %s is not a regular file with one name; it is removed", path)
            try:
                os.unlink(path)
            except OSError as error:
                raise sqlite3.OperationalError(f"cannot remove {path}: {error}") from error

    def _rebuild(self, error: Exception) -> None:
        logger.error("disk tier: the index %s is damaged (%s); it is made again", self._path, error)
        self.close()
        for file in _FILES:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._root, file))
        self.rebuilt += 1
        self._connect()
        self.is_new = True

    @property
    def is_current(self) -> bool:
        """Whether the database is open, and is still the file at its path."""
        if self._connection is None:
            return False
        try:
            state = os.lstat(self._path)
        except OSError:
            return False
        return (state.st_dev, state.st_ino) == self._identity

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._connection is None:
            raise sqlite3.OperationalError(f"the index {self._path} is not open")
        try:
            return work(self._connection)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._rebuild(error)
        return work(self._connection)

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` in one transaction, which no other process interrupts."""

        def run(connection: sqlite3.Connection) -> _T:
            connection.execute("begin immediate")
            try:
                result = work(connection)
                connection.execute("commit")
                return result
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise

        return self._run(run)

    def totals(self) -> tuple[int, int]:
        """Return the number of entries, and the bytes of their files."""
        entries, num_bytes = self._run(
            lambda connection: connection.execute("select entries, bytes from totals").fetchone()
        )
        return entries, num_bytes

    def has(self, names: Sequence[bytes]) -> set[bytes]:
        """Return those of the packed names that the index has."""
        marks = ",".join("?" * len(names))
        text = f"select name from entries where name in ({marks})"
        return {name for (name,) in self._run(lambda connection: connection.execute(text, names).fetchall())}

    def insert(self, entries: Iterable[tuple[bytes, int, int]], owner: bytes = b"") -> None:
        """Insert packed names, sizes and times of use in ns, and end the claims of `owner` on them."""
        rows = list(entries)

        def insert(connection: sqlite3.Connection) -> None:
            connection.executemany("replace into entries values(?, ?, ?)", rows)
            if owner:
                ended = [(name, owner) for name, _, _ in rows]
                connection.executemany("delete from claims where name = ? and owner = ?", ended)

        self.write(insert)

    def remove(self, names: Sequence[bytes], is_absent: Callable[[bytes], bool]) -> int:
        """Remove entries without a file, by their packed names. Return their number.

        `is_absent` is called in the transaction: another process that has stored the file meanwhile inserts
        its row afterwards. Else the file would count for no limit.
        """

        def remove(connection: sqlite3.Connection) -> int:
            absent = [(name,) for name in names if is_absent(name)]
            connection.executemany("delete from entries where name = ?", absent)
            return len(absent)

        return self.write(remove)

    def end_claim(self, name: bytes, owner: bytes) -> None:
        """End the claim of `owner` on a packed name."""
        text = "delete from claims where name = ? and owner = ?"
        self.write(lambda connection: connection.execute(text, (name, owner)))

    def touch(self, uses: dict[bytes, int]) -> None:
        """Write times of use in ns, by packed names."""
        rows = [(used, name) for name, used in uses.items()]
        self.write(
            lambda connection: connection.executemany("update entries set used = ? where name = ?", rows)
        )

    def evict(self, excess: Callable[[int], int], drop: Callable[[bytes], None], now: int) -> int:
        """Remove the entries that were used longest ago; call `drop` for each. Return their number.

        `excess` returns how many bytes are too many, of the bytes of all entries. `now`: the time in ns. A
        later time of use is of a clock that was wrong: such an entry would stay until that time.
        """

        def evict(connection: sqlite3.Connection) -> int:
            connection.execute("update entries set used = ?1 where used > ?1", (now,))
            evicted = 0
            while True:
                (num_bytes,) = connection.execute("select bytes from totals").fetchone()
                missing = excess(num_bytes)
                if missing <= 0:
                    return evicted
                oldest = connection.execute(
                    "select name, bytes from entries order by used limit 64"
                ).fetchall()
                if not oldest:
                    return evicted
                for name, size in oldest:
                    drop(name)
                    connection.execute("delete from entries where name = ?", (name,))
                    evicted += 1
                    missing -= size
                    if missing <= 0:
                        break

        return self.write(evict)

    def claim(self, names: Iterable[bytes], owner: bytes, now: float, ttl_s: float) -> list[bool]:
        """Claim packed names until `now + ttl_s`. False: another owner has a claim that is not expired."""

        def claim(connection: sqlite3.Connection) -> list[bool]:
            # A claim that ends later than a new one would is of a clock that was wrong.
            over = "delete from claims where expires <= ? or expires > ?"
            connection.execute(over, (now, now + ttl_s))
            claimed = []
            for name in names:
                row = connection.execute("select owner from claims where name = ?", (name,)).fetchone()
                claimed.append(row is None or row[0] == owner)
                if claimed[-1]:
                    connection.execute("replace into claims values(?, ?, ?)", (name, owner, now + ttl_s))
            return claimed

        return self.write(claim)

    def erase(self, tenant: bytes | None, key: bytes | None) -> None:
        """Remove the entries of a tenant, of a key, or of both."""
        text = "delete from {table} where (?1 is null or substr(name, {at}, {size}) = ?1)"
        text += " and (?2 is null or (name >= ?2 and name < ?3))"
        after = None if key is None else key + b"\xff" * (2 * DIGEST_BYTES)

        def erase(connection: sqlite3.Connection) -> None:
            for table in ("entries", "claims"):
                statement = text.format(table=table, at=DIGEST_BYTES + 1, size=DIGEST_BYTES)
                connection.execute(statement, (tenant, key, after))

        self.write(erase)

    def names_after(self, name: bytes, limit: int) -> list[bytes]:
        """Return the next packed names behind a name, in their order."""
        text = "select name from entries where name > ? order by name limit ?"
        rows = self._run(lambda connection: connection.execute(text, (name, limit)).fetchall())
        return [name for (name,) in rows]

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        self._identity = None
        if connection is not None:
            connection.close()


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the database is damaged, rather than locked or full."""
    if isinstance(error, sqlite3.OperationalError):
        return "no such table" in str(error) or "no such column" in str(error)
    return type(error) is sqlite3.DatabaseError
