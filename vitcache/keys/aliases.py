"""`KeyAliases`: maps the key of an encoded file to a content key, so that a known file is not decoded."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import NamedTuple

from vitcache.arguments import to_int
from vitcache.device.locks import new_lock
from vitcache.handles import described, refuse_copies
from vitcache.keys.content import check_key


class Alias(NamedTuple):
    """The content key of a decoded file, and the number of rows of its item.

    Examples
    --------
    >>> from vitcache import Alias, content_key
    >>> Alias(content_key(b"pixels"), num_rows=880).num_rows
    880
    """

    key: bytes
    num_rows: int


class KeyAliases:
    """Maps the key of an encoded file to the content key and the number of rows of its item.

    The key of a file is `content_key` of the file's bytes. The processor determines the pixels, so the
    namespace of the file's key must contain the processor's fingerprint (`processor_fingerprint`). It must
    also contain everything that the namespace of the content key contains, above all the tenant.

    An alias does not imply that the cache contains an entry. Look the content key up in the cache; if that is
    a miss, decode the file.

    Rows could also be cached under the file's key, but aliases have two advantages. Files that decode to the
    same pixels share one entry, also with equal pixels that were not decoded from a file. And the number of
    rows, which the prompt needs, is known without decoding.

    Parameters
    ----------
    max_entries
        Maximum number of aliases, an int of at least 1. If it is exceeded, the least recently used alias is
        removed. One alias takes 0.3 kB.

    Raises
    ------
    TypeError
        If `max_entries` is not an int, or is a bool.
    ValueError
        If `max_entries` is less than 1.

    Examples
    --------
    >>> from vitcache import KeyAliases, content_key
    >>> aliases = KeyAliases()
    >>> file_key = content_key(b"bytes of a PNG file")
    >>> aliases.get(file_key)  # None: decode the file
    >>> aliases.add(file_key, content_key(b"its pixels"), num_rows=880)
    >>> aliases.get(file_key).num_rows
    880

    Notes
    -----
    Any thread may call any method. No method waits for a device. `EmbeddingCache.advance_epoch` does not
    change aliases: a content key stays valid, and its look-up is a miss until the item is encoded again.
    """

    def __init__(self, max_entries: int = 65_536) -> None:
        self.max_entries = to_int("max_entries", max_entries, 1)
        self._aliases: OrderedDict[bytes, Alias] = OrderedDict()
        self._lock = new_lock()

    def __len__(self) -> int:
        return len(self._aliases)

    def get(self, file_key: bytes) -> Alias | None:
        """Return the alias of `file_key`, or None. The alias becomes the most recently used one.

        Raises
        ------
        TypeError
            If `file_key` is not bytes.
        ValueError
            If `file_key` does not have 32 bytes.
        """
        check_key(file_key, "file_key")
        with self._lock:
            alias = self._aliases.get(file_key)
            if alias is not None:
                self._move_to_end(file_key)
            return alias

    def add(self, file_key: bytes, key: bytes, num_rows: int) -> None:
        """Map `file_key` to content key `key` and `num_rows` rows. Replaces an earlier alias of `file_key`.

        Raises
        ------
        TypeError
            If `file_key` or `key` is not bytes, or `num_rows` is not an int or is a bool.
        ValueError
            If `file_key` or `key` does not have 32 bytes, or `num_rows` is less than 1.
        """
        check_key(file_key, "file_key")
        check_key(key)
        num_rows = to_int("num_rows", num_rows, 1)
        with self._lock:
            self._aliases[file_key] = Alias(key, num_rows)
            self._move_to_end(file_key)
            # More than one if an interrupt has stopped an earlier call here.
            while len(self._aliases) > self.max_entries:
                with suppress(KeyError):  # as below
                    self._aliases.popitem(last=False)

    def _move_to_end(self, file_key: bytes) -> None:
        # A signal handler of this thread, which the lock lets pass, may have removed aliases.
        with suppress(KeyError):
            self._aliases.move_to_end(file_key)

    def clear(self) -> None:
        """Remove all aliases."""
        with self._lock:
            self._aliases.clear()

    __reduce_ex__ = refuse_copies("a copy would share its lock; `add` the aliases to another `KeyAliases`")

    @described
    def __repr__(self) -> str:
        return f"{len(self)} of {self.max_entries} aliases"
