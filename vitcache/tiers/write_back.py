"""`WriteBack`: which entries a cache copies to its tiers, and how many bytes may wait for it."""

from __future__ import annotations

from dataclasses import dataclass

from vitcache.arguments import check_bool, to_bytes, to_int, to_ms

MOST_HITS = (1 << 31) - 1


@dataclass(frozen=True)
class WriteBack:
    """The rule by which an `EmbeddingCache` offers entries to its tiers.

    An entry is offered once. If it is not stored, because too many bytes wait or the tier is not in use, a
    later hit offers it again.

    Parameters
    ----------
    hits
        An entry is offered at its hit of this number. 0: when it is inserted.
    encode_ms
        An entry that was inserted with an encode time of at least this many milliseconds is offered when it
        is inserted.
    queue_bytes
        Most bytes of entries that wait for one tier: an int, or a str such as ``"256MiB"``.
    from_device
        Whether rows may be read from the device tier. False: only rows that are in the host tier, or that
        have a host copy, are stored, for a caller that may not lack device pages while a tier is slow.

    Raises
    ------
    TypeError
        If `hits` is not an int, `encode_ms` is not a number, `queue_bytes` is neither an int nor a str, or
        `from_device` is not a bool.
    ValueError
        If a number is negative, or `encode_ms` is not finite.

    Examples
    --------
    >>> from vitcache import WriteBack
    >>> WriteBack(hits=0, queue_bytes="1MiB")  # each entry, when it is inserted
    WriteBack(hits=0, encode_ms=50.0, queue_bytes=1048576, from_device=True)
    """

    hits: int = 2
    encode_ms: float = 50.0
    queue_bytes: int | str = "256MiB"
    from_device: bool = True

    def __post_init__(self) -> None:
        check_bool("from_device", self.from_device)
        object.__setattr__(self, "hits", to_int("hits", self.hits, 0, MOST_HITS))
        object.__setattr__(self, "encode_ms", to_ms("encode_ms", self.encode_ms))
        object.__setattr__(self, "queue_bytes", to_bytes("queue_bytes", self.queue_bytes, 0))
