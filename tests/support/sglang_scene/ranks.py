"""Two tensor parallel ranks of SGLang on the CPU: its own groups, and a tower with a collective."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from sglang.srt.distributed import parallel_state
from sglang.srt.runtime_context import get_context, get_parallel
from torch import Tensor, distributed

from sglang_scene.tower import Tower
from vitcache.adapters.sglang import item_factory

RANK = int(os.environ.get("RANK", "0"))
STOCK_TIMEOUT = timedelta(seconds=5)


def start_ranks() -> None:
    """Make SGLang's groups of two ranks, as its scheduler makes them."""
    get_context().override_server_args(tp_size=2).install()
    store = f"file://{os.environ['STORE']}"
    parallel_state.init_distributed_environment(
        world_size=2, rank=RANK, distributed_init_method=store, local_rank=RANK, backend="gloo"
    )
    parallel_state.initialize_model_parallel(backend="gloo")


class SplitTower(Tower):
    """A tower whose ranks compute a half of each row, and add the halves in a collective of their own.

    `before` is called in front of the collectives of a call, and `behind` gets the rows of each.
    """

    def __init__(self, levels: int = 0, form: str = "tensor", group: Any = None) -> None:
        super().__init__(levels, form)
        self.group = get_parallel().attn_tp_group.device_group if group is None else group
        self.before: Callable[[], None] = lambda: None
        self.behind: Callable[[Tensor], Tensor] = lambda rows: rows

    def get_image_feature(self, items: list[Any]) -> Any:
        found = super().get_image_feature(items)
        self.before()
        return [self.add(part) for part in found] if isinstance(found, list) else self.add(found)

    get_video_feature = get_audio_feature = get_image_feature

    def add(self, rows: Tensor) -> Tensor:
        """Add the halves of all ranks: the bits of `rows`."""
        half = rows.float() / 2
        distributed.all_reduce(half, group=self.group)
        return self.behind(half.to(torch.bfloat16))


@contextmanager
def counted_agreements() -> Iterator[list[int]]:
    """The bytes of each all-reduce over SGLang's group of attention ranks in host memory."""
    calls: list[int] = []
    group, original = get_parallel().attn_tp_group.cpu_group, distributed.all_reduce

    def all_reduce(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        if group in (*arguments, *named.values()):
            calls.append(tensor.nbytes)
        return original(tensor, *arguments, **named)

    distributed.all_reduce = all_reduce
    try:
        yield calls
    finally:
        distributed.all_reduce = original


@contextmanager
def unreadable(*items: Any) -> Iterator[None]:
    """The features of some items cannot be read on this rank."""
    original = item_factory.wait_until_offloaded

    def wait(source: Any, feature: Any) -> None:
        if any(source is item for item in items):
            raise MemoryError("no memory on this rank")
        original(source, feature)

    item_factory.wait_until_offloaded = wait
    try:
        yield
    finally:
        item_factory.wait_until_offloaded = original
