"""Claim: device memory does not limit the number of images of a request.

The bench embeds a request chunk by chunk, without the language model: its memory and its KV cache are the
same for all contenders. On a GPU the process gets the model's memory and a fixed number of bytes in addition.
The result is the largest request that can be embedded before torch runs out of memory. At smoke size the
bench counts bytes instead: the features of each encode, the rows that it returns, and the rows that the
contender keeps. That count leaves out the tower's own memory and the allocator's losses.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitcache import Chunk, Item, Items, PinnedRing
from vitcache.bench.chats.chat import Chat, Tower, load_model
from vitcache.bench.chats.engines import NoCache
from vitcache.bench.chats.sides import ENGINES, ON_HOST, VITCACHE, Side, open_ring, open_side
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "limit"
CONTENDERS = (*ENGINES, VITCACHE, ON_HOST)


@dataclass(frozen=True)
class LimitCase:
    """Requests of up to `max_images` images of ``grid`` patches, in `cap_bytes` plus the model's weights.

    vitcache's tiers have space for `cached_images` images; the bytes of the device tier are part of
    `cap_bytes`. With `counts_bytes` the bench counts bytes instead of limiting torch's memory.
    """

    name: str
    grid: tuple[int, int, int]
    cap_bytes: int
    max_images: int
    cached_images: int
    size: str = "8b"
    chunk_tokens: int = 8192
    counts_bytes: bool = False


CASES = {
    "full": [LimitCase("1920x1080 in 4 GiB", (1, 68, 120), 4 << 30, max_images=256, cached_images=16)],
    "smoke": [
        LimitCase(
            "tiny, counted",
            (1, 8, 8),
            3 << 18,
            max_images=16,
            cached_images=2,
            size="tiny",
            chunk_tokens=48,
            counts_bytes=True,
        )
    ],
}


class CountingTower:
    """A tower that counts bytes; raises torch.OutOfMemoryError if they exceed the cap."""

    def __init__(self, tower: Tower, row_bytes: int, cap_bytes: int) -> None:
        self._tower = tower
        self._row_bytes = row_bytes
        self._cap_bytes = cap_bytes
        self.kept_bytes: Callable[[], int] = int

    def __call__(self, features: list[Tensor], items: list[Item]) -> Tensor:
        rows = sum(item.num_rows for item in items) * self._row_bytes
        needed = sum(feature.nbytes for feature in features) + rows + self.kept_bytes()
        if needed > self._cap_bytes:
            raise torch.OutOfMemoryError(f"the encode needs {needed} bytes, the cap is {self._cap_bytes}")
        return self._tower(features, items)


def run_case(case: LimitCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Find the limit of every contender by bisection; yields a label before each try."""
    yield "building the model"
    chat = Chat(load_model(case.size, timer.device), case.grid, case.max_images, share_feature=True)
    limits: dict[str, int] = {}
    with ExitStack() as stack:
        ring = open_ring(timer.device, stack)
        for name in CONTENDERS:
            largest_fit, smallest_failure, images = 0, case.max_images + 1, case.max_images
            while smallest_failure - largest_fit > 1:
                yield f"{name}: {images} images"
                with capped(case, timer.device), ExitStack() as one_try:
                    if fits(open_counted(case, chat, name, ring, one_try), case, chat, images):
                        largest_fit = images
                    else:
                        smallest_failure = images
                images = (largest_fit + smallest_failure) // 2
            limits[name] = largest_fit
    for name, limit in limits.items():
        unit = "images" if limit < case.max_images else "images, at least"
        against = ("no cache", limits["no cache"]) if limits["no cache"] else None
        recorder.add(case.name, name, "limit", unit, Sample.of([float(limit)]), against=against)


def open_counted(case: LimitCase, chat: Chat, name: str, ring: PinnedRing | None, stack: ExitStack) -> Side:
    """Make a contender; if the case counts bytes, its encoder is a `CountingTower`."""
    tower = Tower(chat.model)
    capacity = {"images": case.cached_images, "device_images": case.cached_images}
    if not case.counts_bytes:
        return open_side(name, chat, tower, ring, stack, **capacity)
    counting = CountingTower(tower, chat.row_width * chat.weight.itemsize, case.cap_bytes)
    side = open_side(name, chat, counting, ring, stack, **capacity)
    counting.kept_bytes = side.kept_bytes
    return side


@torch.no_grad()
def fits(side: Side, case: LimitCase, chat: Chat, images: int) -> bool:
    """Whether the contender can embed all chunks of a request with `images` images."""
    tokens, items = images * chat.tokens_per_turn, Items(side.items[:images])
    try:
        for start in range(0, tokens, case.chunk_tokens):
            length = min(case.chunk_tokens, tokens - start)
            ids = chat.host_ids[start : start + length].to(chat.weight.device)
            chunks, deepstack = [Chunk(items, start, length)], chat.deepstack(length)
            errors = side.pipeline.embed(chunks, ids, chat.weight, deepstack=deepstack).errors
            if errors:
                raise errors[0].cause
            if isinstance(side.pipeline, NoCache):
                break  # each later chunk would encode the same images again
    except torch.OutOfMemoryError:
        return False
    return True


@contextmanager
def capped(case: LimitCase, device: torch.device) -> Iterator[None]:
    """Limit torch to `cap_bytes` more than it has reserved now; if the case counts bytes, set no limit."""
    # The OutOfMemoryError of the last try is in a reference cycle with that try's tensors. If they were still
    # reserved here and freed later, this try would get more than the cap.
    gc.collect()
    if case.counts_bytes:
        yield
        return
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_reserved(device) + case.cap_bytes
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total_bytes), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def draw(rows: figures.Rows) -> Figure:
    """Draw a bar per contender; a "+" means that the contender embedded the largest request tried."""
    ours = [row["contender"] for row in rows if row["contender"] in (VITCACHE, ON_HOST)]
    looks = figures.styles([*ours, *(row["contender"] for row in rows)])
    figure, [[axes]] = figures.open_figure(height=0.6 + 0.4 * len(rows))
    for place, row in enumerate(rows):
        axes.barh(place, row["value"], 0.7, **looks[row["contender"]].bar())
        axes.annotate(label_of(row), (row["value"], place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [row["contender"] for row in rows])
    axes.set(
        xlabel="images of the largest request (more is better)",
        ylabel="contender",
        ylim=(len(rows) - 0.4, -0.6),
    )
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)
    best = max((row for row in rows if row["contender"] in ENGINES), key=lambda row: row["value"])
    own = next(row for row in rows if row["contender"] == VITCACHE)
    title = (
        f"In the same memory vitcache embeds a request of {label_of(own)}, the best other contender "
        f"({best['contender']}) one of {label_of(best)}"
    )
    note = f"{rows[0]['case']}. A +: the contender embedded the largest request that was tried."
    return figures.finish(figure, rows, title, note, legend=False)


def label_of(row: dict[str, Any]) -> str:
    """Return the images of a limit, with a "+" if the contender may embed more."""
    return figures.images(f"{row['value']:.0f}{'+' if 'least' in row['unit'] else ''}")
