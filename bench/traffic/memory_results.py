"""The results of ``vitcache memory``, as its JSON has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Held:
    """The number of images that a cache of `bytes` bytes holds."""

    bytes: int
    images: int


@dataclass(frozen=True)
class ImageMemory:
    """One size of images: its rows, the entries and pages that they take, the bytes of these pages."""

    image: str
    rows: int
    entries: int
    pages: int
    bytes: int
    held: list[Held]


@dataclass(frozen=True)
class ModelMemory:
    """The images of one model. `checkpoint` is the source of a known shape, else None."""

    model: str
    checkpoint: str | None
    processor: str
    saved_settings: bool
    row_width: int
    dtype: str
    images: list[ImageMemory]


@dataclass(frozen=True)
class SizeResult:
    """The shares that a cache of `bytes` bytes saves. No policy can exceed `saved_at_most`."""

    bytes: int
    hit_rate: float
    saved: float
    saved_at_most: float


@dataclass(frozen=True)
class TraceMemory:
    """The results of one trace. `device_bytes` is the smallest size that reaches `target`, or None."""

    trace: str
    images: int
    different: int
    encode_ms: float
    policy: str
    page_rows: int
    row_bytes: int
    target: float
    device_bytes: int | None
    sizes: list[SizeResult]
