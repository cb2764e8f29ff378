"""`LazyFeatures`: memory, lifetimes, threads, modes, and graphs of `torch.compile`."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lazy_scene import HIDDEN, LENGTHS, LazyScene, same
from torch import Tensor, nn

from vitcache.adapters.lazy_features import LazyFeatures
from vitcache.adapters.lazy_rows import LazyRows
from vitcache.placement.ops import embed_tokens, scatter_embeddings

NUM_ROWS = sum(LENGTHS)

Make = Callable[[Any], Any]

VIEWS: list[Make] = [
    lambda t: t[2:9],
    lambda t: t[-3:][:2],
    lambda t: t.unflatten(0, (3, 4))[1],
    lambda t: t.unflatten(0, (3, 4))[1:].unbind()[1],
    lambda t: t.split_with_sizes([3, 2, 7])[2],
    lambda t: t.reshape(2, -1, HIDDEN).flatten(0, 1),
    lambda t: t[None].squeeze(0).contiguous().detach(),
    lambda t: t.to(t.dtype),
]
COPIES: list[Make] = [
    lambda t: t.clone(),
    lambda t: torch.cat([t]),
    lambda t: torch.stack([t]),
    lambda t: t.repeat(1, 1),
    lambda t: t[torch.arange(NUM_ROWS)],
    lambda t: t.to(torch.float16),
]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows with each copy of rows."""
    found: list[None] = []
    copy = LazyRows._copy

    def counted(rows: LazyRows, ranges: Any) -> Tensor:
        found.append(None)
        return copy(rows, ranges)

    monkeypatch.setattr(LazyRows, "_copy", counted)
    return found


@pytest.mark.parametrize("make", VIEWS)
@pytest.mark.parametrize("reads", ["nothing", "base", "view"])
@torch.no_grad()
def test_view_shares_its_memory_with_its_base(make: Make, reads: str) -> None:
    scene = LazyScene.of()
    (plain,), (lazy,) = scene.plain, scene.lazy
    view, expected = make(lazy), make(plain)
    if reads != "nothing":
        (lazy if reads == "base" else view).sum()
    for number, (written, of_plain) in enumerate(
        [(lazy, plain), (view, expected), (make(lazy), make(plain))]
    ):
        written[1:3] = number
        of_plain[1:3] = number
        assert same(plain, lazy)
        assert same(expected, view)


@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("is_read", [False, True])
@torch.no_grad()
def test_copy_shares_no_memory_and_no_write_reaches_the_cache(make: Make, is_read: bool) -> None:
    scene = LazyScene.of()
    (lazy,), expected = scene.lazy, make(scene.plain[0])
    if is_read:
        lazy.sum()
    copied = make(lazy)
    lazy.zero_()
    assert same(copied, expected)
    copied.fill_(1)
    assert not lazy.any()
    with scene.cache.get(bytes(32)) as lease:
        assert torch.equal(lease.to_tensor(), scene.plain[0][: LENGTHS[0]])


def test_planes_of_the_same_rows_take_one_launch_and_share_no_rows(launches: list[None]) -> None:
    scene = LazyScene.of(levels=2)
    for lazy, plain in zip(scene.lazy, scene.plain, strict=True):
        assert same(lazy, plain)
    assert len(launches) == 1
    for number, lazy in enumerate(scene.lazy):
        lazy.fill_(number)
    assert [lazy.unique().tolist() for lazy in scene.lazy] == [[0], [1], [2]]
    assert same(scene.lazy[2].clone(), torch.full_like(scene.plain[2], 2))
    again = scene.lazy[0].copy_of(scene.lazy[0].ranges, (NUM_ROWS, HIDDEN))
    assert same(again, scene.plain[0])
    assert len(launches) == 2


@pytest.mark.parametrize("is_read", [False, True])
def test_leases_end_with_the_last_lazy_tensor(is_read: bool) -> None:
    gc.disable()  # no lazy tensor is part of a reference cycle
    scene = LazyScene.of(levels=1)
    leased = scene.cache.stats().leased_pages
    last = torch.cat(scene.lazy[1].unflatten(0, (2, 6)).unbind())[2:].to(torch.float16)
    if is_read:
        assert all(lazy.numpy().size for lazy in (*scene.lazy, last[1:]))
    scene.lazy.clear()
    assert scene.cache.stats().leased_pages == leased > 0
    del last
    assert scene.cache.stats().leased_pages == 0
    gc.enable()


@pytest.mark.parametrize("is_read", [False, True])
def test_rows_outlive_the_entries_and_the_cache(is_read: bool) -> None:
    scene = LazyScene.of()
    if is_read:
        scene.lazy[0].sum()
    scene.cache.put(bytes(32), torch.zeros(LENGTHS[0], HIDDEN))  # replaced while leased
    scene.cache.clear()
    scene.cache.advance_epoch()
    for number in range(100, 200):  # evicts all that can be evicted
        scene.cache.put(bytes([number]) * 32, torch.zeros(2, HIDDEN))
    scene.cache.close()
    assert same(scene.lazy[0], scene.plain[0])


def test_threads_that_read_at_once_share_one_copy(launches: list[None]) -> None:
    scene = LazyScene.of(levels=1)
    start, found = threading.Barrier(8), []

    def read(number: int) -> None:
        start.wait()
        found.append((number % 2, scene.lazy[number % 2].data_ptr()))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 2
    assert len(launches) == 1
    assert all(map(same, scene.lazy, scene.plain))


@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("read_in", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_features_that_were_read_in_any_mode_can_train_a_head(made_in: Any, read_in: Any) -> None:
    with made_in():
        scene = LazyScene.of(levels=1)
    with read_in():
        assert not any(lazy.sum().requires_grad for lazy in scene.lazy)
    head = nn.Linear(HIDDEN, 1)
    for lazy, plain in zip(scene.lazy, scene.plain, strict=True):
        head.zero_grad()
        head(lazy).sum().backward()
        assert head.weight.grad is not None
        torch.testing.assert_close(head.weight.grad, plain.sum(0, keepdim=True))


def test_autocast_takes_lazy_features_like_plain_ones() -> None:
    scene = LazyScene.of()
    weight = torch.randn(HIDDEN, HIDDEN)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(scene.plain[0] @ weight, scene.lazy[0] @ weight)


def test_placements_of_lazy_features_and_into_them_work() -> None:
    scene = LazyScene.of()
    (plain,), (lazy,) = scene.plain, scene.lazy
    assert torch.equal(scatter_embeddings(torch.zeros(NUM_ROWS + 1, HIDDEN), [lazy], [1])[1:], plain)
    assert torch.equal(embed_tokens(torch.arange(NUM_ROWS), lazy, [], []), plain)
    assert scene.cache.put(b"1" * 32, lazy)
    scatter_embeddings(lazy, [torch.ones(2, HIDDEN)], [1])
    assert same(lazy[1:3], torch.ones(2, HIDDEN))


def test_address_of_features_without_memory_is_refused() -> None:
    scene = LazyScene.of()
    with pytest.raises(RuntimeError, match="Cannot access data pointer"):
        torch._C._to_dlpack(scene.lazy[0])


def test_compiled_functions_take_lazy_features_by_graph_breaks() -> None:
    def forward(t: Tensor, levels: list[Tensor]) -> Any:
        return (t * 2).sum(0) + 1, torch.cat(levels)[2:5], t.shape[0], t

    scene = LazyScene.of(levels=2)
    torch.compiler.reset()
    found = torch.compile(forward, backend="eager")(scene.lazy[0], list(scene.lazy[1:]))
    assert type(found[3]) is LazyFeatures
    assert all(map(same, found, forward(scene.plain[0], scene.plain[1:])))
