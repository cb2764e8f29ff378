"""`PlacedCall`: a merge in place beside `Tensor.masked_scatter` of plain tensors."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from lazy_scene import HIDDEN, LENGTHS, LazyScene, Owner, outcome, same, stock_caller  # noqa: F401
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from vitcache.adapters import placed_call
from vitcache.adapters.lazy_features import LazyFeatures

pytestmark = pytest.mark.usefixtures("stock_caller")

NUM_ROWS = sum(LENGTHS)
BATCH, TOKENS = 2, 9
DTYPES = (torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)

ARRANGEMENTS: list[Callable[[Any], Any]] = [
    lambda t: t,
    lambda t: torch.cat([t[5:], t[:5]]),
    lambda t: torch.stack(t.unflatten(0, (4, 3)).unbind()[::-1]),
    lambda t: torch.cat([t[:4], t[:4], t[:4]]),
    lambda t: t[torch.tensor([11, 10, 3, 4, 5, 5, 0, 1, 2, 8, 7, 6])],
]
"""Features of `NUM_ROWS` rows, as a forward may arrange them before the merge."""


def poisoned(dtype: torch.dtype, batch: int = BATCH, tokens: int = TOKENS) -> Tensor:
    return torch.full((batch, tokens, HIDDEN), float("nan"), dtype=dtype)


def mask_of(chosen: list[int], batch: int = BATCH, tokens: int = TOKENS) -> Tensor:
    mask = torch.zeros(batch * tokens, dtype=torch.bool)
    mask[chosen] = True
    return mask.view(batch, tokens, 1)


def bits(outcome: Any) -> Any:
    return torch.nan_to_num(outcome, nan=99.0) if isinstance(outcome, Tensor) else outcome


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "stored"), DTYPES)  # of the features, and of the cache
@torch.no_grad()
def test_merge_writes_the_rows_in_place_and_packs_the_levels_of_the_same_tokens(
    levels: int, dtype: torch.dtype, stored: torch.dtype | None
) -> None:
    chooser = random.Random(levels)
    for arrange in ARRANGEMENTS:
        for is_run in (False, True):
            scene = LazyScene.of(levels, dtype, stored)
            call = scene.begin_call()
            chosen = list(range(4, 4 + NUM_ROWS)) if is_run else chooser.sample(range(18), NUM_ROWS)
            mask = mask_of(chosen)
            mask = mask if is_run else mask.expand(-1, -1, HIDDEN)
            text = poisoned(dtype)
            features, *rest = map(arrange, scene.lazy)
            merged = text.masked_scatter(mask, features)
            assert merged is text
            assert same(bits(text), bits(poisoned(dtype).masked_scatter(mask, arrange(scene.plain[0]))))
            assert (call.is_placed, call.reason, features.memory) == (True, None, [])
            for level, plain in zip(rest, scene.plain[1:], strict=True):
                packed, again = torch.cat([level]), torch.cat([level])
                assert (type(packed), type(again)) == (Tensor, LazyFeatures)
                assert same(packed, arrange(plain))
                packed.zero_()
                assert same(again, arrange(plain))


@torch.no_grad()
def test_packed_level_serves_no_other_rows_or_dtype() -> None:
    for read in (
        lambda t: torch.cat([t[2:]]),
        lambda t: torch.cat([t.to(torch.float64), t.to(torch.float64)]),
        lambda t: torch.cat([t.to(torch.float16)]),
        lambda t: t.to(torch.float16) + 0,
        lambda t: torch.cat([t.mul_(2)]),
    ):
        scene = LazyScene.of(levels=1)
        scene.begin_call()
        poisoned(torch.float32).masked_scatter(mask_of(list(range(NUM_ROWS))), scene.lazy[0])
        assert same(read(scene.lazy[1]), read(scene.plain[1]))


@pytest.mark.parametrize("number", [0, NUM_ROWS - 1, NUM_ROWS + 1, BATCH * TOKENS])
@torch.no_grad()
def test_merge_with_another_number_of_tokens_than_rows_is_that_of_torch(number: int) -> None:
    scene = LazyScene.of(levels=1)
    call = scene.begin_call()
    text, mask = poisoned(torch.float32), mask_of(list(range(number)))
    expected = outcome(text.masked_scatter, mask, scene.plain[0])
    assert same(bits(outcome(text.masked_scatter, mask, scene.lazy[0])), bits(expected))
    assert text.isnan().all()
    assert call.reason == "masked_scatter reads the features"
    assert not call.is_placed


ROWS = list(range(NUM_ROWS))
OTHER_FORMS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "two dimensions": lambda: (poisoned(torch.float32)[0].repeat(2, 1), mask_of(ROWS).flatten(0, 1)),
    "mask of two dimensions": lambda: (poisoned(torch.float32, 1, 18), mask_of(ROWS, 1, 18)[0]),
    "mask of numbers": lambda: (poisoned(torch.float32), mask_of(ROWS).to(torch.uint8)),
    "mask of elements": lambda: (poisoned(torch.float32), mask_of(ROWS).repeat(1, 1, HIDDEN)),
    "mask of another width": lambda: (poisoned(torch.float32), mask_of(ROWS).expand(-1, -1, HIDDEN + 1)),
    "mask of another length": lambda: (poisoned(torch.float32), mask_of(ROWS)[:, :-1]),
    "another dtype": lambda: (poisoned(torch.float64), mask_of(ROWS)),
    "another width": lambda: (poisoned(torch.float32).repeat(1, 1, 2), mask_of(ROWS)),
    "another device": lambda: (poisoned(torch.float32).to("meta"), mask_of(ROWS).to("meta")),
    "another layout": lambda: (poisoned(torch.float32).transpose(0, 1), mask_of(ROWS, TOKENS, BATCH)),
    "a parameter": lambda: (nn.Parameter(poisoned(torch.float32)), mask_of(ROWS)),
}


@pytest.mark.filterwarnings("ignore:masked_scatter_ received a mask")
@pytest.mark.parametrize("form", OTHER_FORMS)
@torch.no_grad()
def test_merge_in_another_form_is_that_of_torch_and_says_why(form: str) -> None:
    scene = LazyScene.of()
    call = scene.begin_call()
    text, mask = OTHER_FORMS[form]()
    expected = outcome(text.masked_scatter, mask, scene.plain[0])
    found = outcome(text.masked_scatter, mask, scene.lazy[0])
    if text.device.type == "meta":
        assert type(found) is type(expected)
    else:
        assert same(bits(found), bits(expected))
        assert text.isnan().all()
    assert call.reason == "the text embeddings have another dtype, device or layout than the features"


@torch.no_grad()
def test_merge_in_a_dtype_that_no_placement_can_write_is_that_of_torch() -> None:
    scene = LazyScene.of()
    scene.begin_call()
    text, mask = poisoned(torch.float64), mask_of(ROWS)
    merged = text.masked_scatter(mask, scene.lazy[0].to(torch.float64))
    assert same(bits(merged), bits(text.masked_scatter(mask, scene.plain[0].double())))


@pytest.mark.parametrize("prepare", ["grad", "no call", "reason", "read", "level", "other thread"])
def test_merge_that_the_call_does_not_allow_leaves_the_text_alone(prepare: str) -> None:
    scene = LazyScene.of(levels=1)
    plane = int(prepare == "level")
    if prepare == "read":
        scene.lazy[plane].sum()
    call = None if prepare == "no call" else scene.begin_call(reason="no" if prepare == "reason" else None)
    text, mask = poisoned(torch.float32), mask_of(ROWS)
    merged: list[Tensor] = []

    def merge() -> None:
        with torch.set_grad_enabled(prepare == "grad"):
            merged.append(text.masked_scatter(mask, scene.lazy[plane]))

    if prepare == "other thread":
        thread = threading.Thread(target=merge)
        thread.start()
        thread.join()
    else:
        merge()
    assert same(bits(merged[0]), bits(text.masked_scatter(mask, scene.plain[plane])))
    assert text.isnan().all()
    assert call is None or not call.is_placed
    assert prepare != "read" or call.reason == "the features were read before the merge"


class Keeps(nn.Embedding):
    """An embedding of a class of its own: it may keep its output."""


@pytest.mark.parametrize("keeps", ["hook", "global hook", "replaced forward", "class", "nothing known"])
@torch.no_grad()
def test_merge_writes_to_a_copy_if_the_output_of_the_embedding_may_be_kept(keeps: str) -> None:
    embedding = Keeps(8, HIDDEN) if keeps == "class" else nn.Embedding(8, HIDDEN)
    if keeps == "replaced forward":
        embedding.forward = embedding.forward  # type: ignore[method-assign]
    with ExitStack() as stack:
        if "hook" in keeps:
            register = register_module_forward_hook if "global" in keeps else embedding.register_forward_hook
            stack.callback(register(lambda *_: None).remove)
        scene = LazyScene.of()
        call = scene.begin_call(nn.Module() if keeps == "nothing known" else Owner(embedding))
        text, mask = poisoned(torch.float32), mask_of(ROWS)
        merged = text.masked_scatter(mask, scene.lazy[0])
    assert call.is_placed
    assert text.isnan().all()
    assert same(bits(merged), bits(text.masked_scatter(mask, scene.plain[0])))


@torch.no_grad()
def test_leases_end_after_a_launch_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(placed_call, "scatter_embeddings", fail)
    gc.disable()
    try:
        scene = LazyScene.of(levels=1)
        scene.begin_call()
        with pytest.raises(MemoryError):
            poisoned(torch.float32).masked_scatter(mask_of(ROWS), scene.lazy[0])
        scene.thread.call = None
        scene.lazy.clear()
        assert scene.cache.stats().leased_pages == 0
    finally:
        gc.enable()


@torch.no_grad()
def test_call_that_an_interrupt_left_behind_keeps_no_lease() -> None:
    scene = LazyScene.of(levels=2)
    scene.begin_call()
    poisoned(torch.float32).masked_scatter(mask_of(ROWS), scene.lazy[0])
    assert scene.cache.stats().leased_pages > 0
    scene.lazy.clear()
    gc.collect()
    assert scene.thread.call is not None
    assert scene.cache.stats().leased_pages == 0
