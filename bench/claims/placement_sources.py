"""What the bench `scatter` places: tensors, and the pages of a cache. Each source checks its own counters.

A server takes a lease for each image in each step. So all leases are new in each call, except those of
`UsedLeases`: they have been used on the stream before. The leases are taken outside of the time that is
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vitcache import EmbeddingCache, Lease
from vitcache.bench.chats.contenders import Scene
from vitcache.bench.traffic.simulation import PAGE_ROWS
from vitcache.pages.reservation import Reservation


class Tensors:
    """One tensor per image.

    Attributes
    ----------
    embeddings, spans, store
        The arguments of `scatter_embeddings`.
    """

    def __init__(self, scene: Scene) -> None:
        self.embeddings: Any = scene.embeddings
        self.spans: Any = scene.spans
        self.store: Sequence[Reservation] | None = None

    def before_call(self) -> None:
        """Prepare the next call; not timed."""

    def check(self) -> None:
        """Raise RuntimeError if a call did other work than the name of the source says."""

    def close(self) -> None:
        """Free everything that the source has taken from a cache."""


class Packed(Tensors):
    """One tensor with the rows of all images, and the spans in an array."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.embeddings, self.spans = scene.packed, scene.packed_spans


class TensorsAndPages(Tensors):
    """One tensor per image, whose rows the launch also writes to pages: the same pages in every call."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.cache = open_cache(scene, on_host=False)
        reserved = [self.cache.reserve(key, scene.case.rows) for key in keys_of(scene)]
        self.store = [pages for pages in reserved if pages is not None]

    def check(self) -> None:
        """See `Tensors`."""
        written = [torch.cat(pages.segments()) for pages in self.store or ()]
        expect(
            "pages with the rows of their image", len(self.embeddings), count_equal(written, self.embeddings)
        )

    def close(self) -> None:
        """See `Tensors`."""
        for pages in self.store or ():
            pages.cancel()
        self.cache.close()


class NewLeases(Tensors):
    """Leases on the entries of one tier, which are new in each call. No entry is promoted."""

    def __init__(self, scene: Scene, *, tier: str = "device") -> None:
        super().__init__(scene)
        self.tier, self.keys, self.calls = tier, keys_of(scene), 0
        self.cache = open_cache(scene, on_host=tier == "host")
        for key, rows in zip(self.keys, scene.embeddings, strict=True):
            self.cache.put(key, rows, tier=tier)
        self.embeddings = []
        NewLeases.before_call(self)

    def before_call(self) -> None:
        """See `Tensors`."""
        self.release()
        self.calls += 1
        self.embeddings = self.cache.get_many(self.keys)

    def check(self) -> None:
        """See `Tensors`."""
        stats = self.cache.stats()
        expect(f"leases in the {self.tier} tier", len(self.keys), self.leases_in_tier())
        expect(f"hits in the {self.tier} tier", self.calls * len(self.keys), getattr(stats, self.tier).hits)
        expect("promotions", 0, stats.promotions)

    def close(self) -> None:
        """See `Tensors`."""
        self.release()
        self.cache.close()

    def leases_in_tier(self) -> int:
        """Return the number of leases on entries in the source's tier."""
        return sum(isinstance(lease, Lease) and lease.tier == self.tier for lease in self.embeddings)

    def release(self) -> None:
        """Release all leases."""
        for lease in self.embeddings:
            lease.release()


class UsedLeases(NewLeases):
    """Leases that are the same in each call."""

    def before_call(self) -> None:
        """See `Tensors`."""


class HostPages(NewLeases):
    """New leases on entries in the host tier."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene, tier="host")


class PromotedPages(HostPages):
    """Leases on entries in the host tier that the launch promotes: it also writes their rows to device pages.

    Every call writes the same pages, and `check` commits them.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        reserved = [self.cache.promote(lease) for lease in self.embeddings]
        self.store = [pages for pages in reserved if pages is not None]
        expect("reservations for promotions", len(self.keys), len(self.store))

    def before_call(self) -> None:
        """See `Tensors`."""

    def check(self) -> None:
        """See `Tensors`."""
        expect("leases in the host tier", len(self.keys), self.leases_in_tier())
        expect("commits", len(self.keys), sum(pages.commit() for pages in self.store or ()))
        expect("promotions", len(self.keys), self.cache.stats().promotions)
        promoted = self.cache.get_many(self.keys)
        rows = [lease.to_tensor() for lease in promoted if lease is not None and lease.tier == "device"]
        wanted = [lease.to_tensor() for lease in self.embeddings]
        expect("promoted entries with the rows of their image", len(self.keys), count_equal(rows, wanted))

    def close(self) -> None:
        """See `Tensors`."""
        for pages in self.store or ():
            pages.cancel()
        super().close()


def expect(name: str, expected: int, got: int) -> None:
    """Raise RuntimeError if a count differs from the expected count."""
    if got != expected:
        raise RuntimeError(f"expected {expected} {name}, got {got}: the source gets no number")


def count_equal(rows: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> int:
    """Return how many tensors equal the tensor at the same place of the other list."""
    return sum(torch.equal(part, other) for part, other in zip(rows, wanted, strict=False))


def open_cache(scene: Scene, *, on_host: bool) -> EmbeddingCache:
    """Make an empty cache; each of its tiers has space for all rows of the scene."""
    page_bytes = PAGE_ROWS * scene.width * scene.dtype.itemsize
    tier_bytes = scene.case.items * -(-scene.case.rows // PAGE_ROWS) * page_bytes
    return EmbeddingCache(
        scene.width,
        dtype=scene.dtype,
        device=scene.device,
        device_bytes=tier_bytes,
        host_bytes=tier_bytes if on_host else 0,
    )


def keys_of(scene: Scene) -> list[bytes]:
    """Return a key per item."""
    return [item.to_bytes(32, "little") for item in range(scene.case.items)]
