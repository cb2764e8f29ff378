"""`KeyAliases`: what a key of an encoded file stands for, so that a known picture is not even decoded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from vitcache.arguments import to_int
from vitcache.keys.content import check_key


class Alias(NamedTuple):
    """The content key that a file's key stands for, and the item's number of rows."""

    key: bytes
    num_rows: int


class KeyAliases:
    """Remembers for files that were decoded once which content key and how many rows they came to.

    The key of a file is `content_key` of its bytes. It stands for what a processor makes of them, so its
    namespace must name the processor, by `processor_fingerprint`, and all else that the content key's does:
    the tenant above all. An alias promises nothing about the cache: ask it for the entry, and decode the file
    where that is gone.

    Why not cache by the file's key itself: files that decode to the same pixels share one entry, as do
    pixels that came without a file; and the number of rows, which the prompt needs, comes without decoding.

    Parameters
    ----------
    max_entries
        Beyond that the alias goes that was longest not asked for. One takes 0.3 kB.

    Raises
    ------
    TypeError
        If `max_entries` is no int.
    ValueError
        If it is less than 1.

    Notes
    -----
    Any thread may call. Nothing here waits for a device. `EmbeddingCache.advance_epoch` leaves aliases as
    they are: content keys stay what they were, and their entries are gone.
    """

    def __init__(self, max_entries: int = 65_536) -> None:
        self.max_entries = to_int("max_entries", max_entries, 1)
        self._aliases: OrderedDict[bytes, Alias] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._aliases)

    def get(self, file_key: bytes) -> Alias | None:
        """Return what `file_key` stands for, None if it is not known.

        Raises
        ------
        TypeError
            If `file_key` is not bytes.
        ValueError
            If it is not of 32 bytes.
        """
        check_key(file_key, "file_key")
        with self._lock:
            alias = self._aliases.get(file_key)
            if alias is not None:
                self._aliases.move_to_end(file_key)
            return alias

    def add(self, file_key: bytes, key: bytes, num_rows: int) -> None:
        """Remember that the file of `file_key` is the item of `key`, in the place of what was known of it.

        Raises
        ------
        TypeError
            If a key is not bytes or `num_rows` no int.
        ValueError
            If a key is not of 32 bytes or `num_rows` is less than 1.
        """
        check_key(file_key, "file_key")
        check_key(key)
        num_rows = to_int("num_rows", num_rows, 1)
        with self._lock:
            self._aliases[file_key] = Alias(key, num_rows)
            self._aliases.move_to_end(file_key)
            if len(self._aliases) > self.max_entries:
                self._aliases.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._aliases.clear()
