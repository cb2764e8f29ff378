"""Claim: how many images a request may have is no question of device memory.

The vision part alone, chunk after chunk: the language model and its KV cache take the same of everybody. On a
GPU the process gets the model's memory and a fixed number of bytes more, and the question is how large a
request can be embedded before torch is out of memory. At smoke size bytes are counted in the place of that:
the features that an encode is given, the rows that it returns, and the rows that are kept. That is a
stand-in: it leaves out the tower's own memory, and what an allocator loses.
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
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "limit"
CONTENDERS = (*ENGINES, VITCACHE, ON_HOST)


@dataclass(frozen=True)
class LimitCase:
    """Requests of up to `most` images of ``grid`` patches, in `cap_bytes` beside the model's weights.

    vitcache gets room for `cached` images, out of the same bytes. With `counted` bytes are counted.
    """

    name: str
    grid: tuple[int, int, int]
    cap_bytes: int
    most: int
    cached: int
    size: str = "8b"
    chunk_tokens: int = 8192
    counted: bool = False


CASES = {
    "full": [LimitCase("1920x1080 in 4 GiB", (1, 68, 120), 4 << 30, most=256, cached=16)],
    "smoke": [
        LimitCase(
            "tiny, counted", (1, 8, 8), 3 << 18, most=16, cached=2, size="tiny", chunk_tokens=48, counted=True
        )
    ],
}


class CountingTower:
    """The tower where bytes are counted: raises torch.OutOfMemoryError where it would go beyond the cap."""

    def __init__(self, tower: Tower, row_bytes: int, cap_bytes: int) -> None:
        self._tower = tower
        self._row_bytes = row_bytes
        self._cap_bytes = cap_bytes
        self.kept_bytes: Callable[[], int] = int

    def __call__(self, features: list[Tensor], items: list[Item]) -> Tensor:
        rows = sum(item.num_rows for item in items) * self._row_bytes
        wanted = sum(feature.nbytes for feature in features) + rows + self.kept_bytes()
        if wanted > self._cap_bytes:
            raise torch.OutOfMemoryError(f"{wanted} bytes are wanted, the cap is {self._cap_bytes}")
        return self._tower(features, items)


def run_case(case: LimitCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Search the limit of every contender; yields what it does next."""
    yield "building the model"
    chat = Chat(load_model(case.size, timer.device), case.grid, case.most, share_feature=True)
    limits: dict[str, int] = {}
    with ExitStack() as stack:
        ring = open_ring(timer.device, stack)
        for name in CONTENDERS:
            fitting, beyond, tried = 0, case.most + 1, case.most
            while beyond - fitting > 1:
                yield f"{name}: {tried} images"
                with capped(case, timer.device), ExitStack() as each:
                    if fits(open_counted(case, chat, name, ring, each), case, chat, tried):
                        fitting = tried
                    else:
                        beyond = tried
                tried = (fitting + beyond) // 2
            limits[name] = fitting
    for name, limit in limits.items():
        unit = "images" if limit < case.most else "images, at least"
        against = ("no cache", limits["no cache"]) if limits["no cache"] else None
        recorder.add(case.name, name, "limit", unit, Sample.of([float(limit)]), against=against)


def open_counted(case: LimitCase, chat: Chat, name: str, ring: PinnedRing | None, stack: ExitStack) -> Side:
    """A contender, behind a tower that counts where nothing else sets a limit."""
    tower, room = Tower(chat.model), {"images": case.cached, "before_host": case.cached}
    if not case.counted:
        return open_side(name, chat, tower, ring, stack, **room)
    counting = CountingTower(tower, chat.row_width * chat.weight.itemsize, case.cap_bytes)
    side = open_side(name, chat, counting, ring, stack, **room)
    counting.kept_bytes = side.kept_bytes
    return side


@torch.no_grad()
def fits(side: Side, case: LimitCase, chat: Chat, images: int) -> bool:
    """Whether all chunks of a request with so many images can be embedded."""
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
                break  # the other chunks would do the same again
    except torch.OutOfMemoryError:
        return False
    return True


@contextmanager
def capped(case: LimitCase, device: torch.device) -> Iterator[None]:
    """Let torch have so many bytes of the GPU beside what it has; nothing to do where they are counted."""
    # An error is in a cycle with what it ran out of memory for, which would be room beyond the cap later.
    gc.collect()
    if case.counted:
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


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A bar per contender; one that goes up to the most that was tried may go further."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar([row["contender"] for row in rows], [row["value"] for row in rows])
    axes.bar_label(bars, [f"{row['value']:.0f}{'+' if 'least' in row['unit'] else ''}" for row in rows])
    axes.set_ylabel("images per request")
    axes.set_title(f"{rows[0]['case']}, {rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['commit']}")
    return figure
