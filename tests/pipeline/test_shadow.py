"""Shadow mode: which hits are encoded again, and what is reported of them."""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, encode_one, feature, make_ids, make_weight
from torch import Tensor

from vitcache import Chunk, EmbedResult, Item, Shadow, Span, VisionPipeline

KEY = bytes(32)


def compare(cached: Tensor, fresh: Tensor) -> float:
    """What is reported of a comparison."""
    reports: list[tuple[bytes, float]] = []
    Shadow(1, lambda *report: reports.append(report)).check(KEY, cached, lambda: fresh)
    [(key, difference)] = reports
    assert key == KEY
    return difference


def test_one_hit_in_so_many_is_wanted() -> None:
    shadow = Shadow(3, print)
    assert [shadow.wants() for _ in range(7)] == [False, False, True, False, False, True, False]
    assert all(Shadow(1, print).wants() for _ in range(3))


def test_threads_share_the_count() -> None:
    shadow, wanted = Shadow(10, print), []

    def hit() -> None:
        wanted.extend(shadow.wants() for _ in range(500))

    threads = [threading.Thread(target=hit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wanted) == 200


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_wrong_number_of_hits_is_an_error(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"every .*{every}"):
        Shadow(every, print)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_largest_difference_is_reported_as_the_cache_would_round_it(dtype: torch.dtype) -> None:
    fresh = torch.randn(5, 7)
    cached = fresh.to(dtype, copy=True)
    assert compare(cached, fresh) == 0.0
    cached[3, 2] = 2.0
    fresh[3, 2] = -1.5
    assert compare(cached, fresh) == 3.5


def test_rows_that_are_not_finite_differ_unless_they_are_the_same() -> None:
    cached = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]])
    assert compare(cached, cached.clone()) == 0.0
    for column, value in ((0, 1.0), (1, -math.inf), (2, 1.0), (3, math.nan)):
        fresh = cached.clone()
        fresh[0, column] = value
        assert compare(cached, fresh) == math.inf


def test_other_shapes_are_infinitely_far_and_no_rows_are_not() -> None:
    assert compare(torch.zeros(2, 3), torch.zeros(3, 3)) == math.inf
    assert compare(torch.zeros(2, 3), torch.zeros(2, 4)) == math.inf
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0


def raise_it(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("encode", "report"),
    [
        (lambda: raise_it(OSError("no file")), print),
        (lambda: torch.zeros(1, 1), lambda *_: raise_it(OSError())),
    ],
    ids=["encode", "report"],
)
def test_what_is_raised_meanwhile_is_logged(
    encode: Any, report: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Shadow(1, report).check(KEY, torch.zeros(1, 1), encode)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("vitcache.shadow", logging.ERROR)
    assert KEY.hex() in record.message
    assert record.exc_info[0] is OSError


class Scene:
    """A pipeline with a cache of its own, in shadow mode, and what it reports."""

    def __init__(self, tower: Tower, *, every: int = 1, **options: int) -> None:
        self.reports: list[tuple[bytes, float]] = []
        cache = make_cache(**options)
        shadow = Shadow(every, lambda *report: self.reports.append(report))
        self.pipeline = VisionPipeline(tower, cache, shadow=shadow)

    def embed(self, *items: Item) -> EmbedResult:
        chunk = Chunk(items, 0, max(span.stop for item in items for span in item.spans))
        return self.pipeline.embed([chunk], make_ids(chunk.length), make_weight())


@pytest.mark.parametrize("packed", [False, True])
def test_the_pipeline_finds_an_entry_that_is_out_of_date_and_serves_it_all_the_same(packed: bool) -> None:
    tower = Tower(reuses_memory=True, packed=packed)
    scene = Scene(tower)
    key = b"a" * 32
    old = Item(feature(0, 3), Span(0, 3), key=key)
    first = scene.embed(old).inputs_embeds.clone()
    assert scene.reports == []
    assert torch.equal(scene.embed(old).inputs_embeds, first)
    assert scene.reports == [(key, 0.0)]
    # The same key, and another picture; beside it one that is missing.
    stale, other = Item(feature(1, 3), Span(0, 3), key=key), Item(feature(2, 2), Span(3, 2))
    result = scene.embed(stale, other)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds[:3], first)
    assert torch.equal(result.inputs_embeds[3:], encode_one(other.feature))
    apart = (encode_one(stale.feature) - encode_one(old.feature)).abs().max()
    assert scene.reports[1:] == [(key, float(apart))]
    assert torch.equal(scene.embed(old).inputs_embeds, first)  # nothing was entered
    scene.pipeline.cache.check_integrity()


def test_rows_that_found_no_room_are_entered_before_the_encoder_is_called_again() -> None:
    scene = Scene(Tower(reuses_memory=True), device_pages=2, host_pages=4)
    old, new = Item(feature(0, 3), Span(0, 3)), Item(feature(1, 2), Span(3, 2))
    scene.embed(old)
    scene.embed(old, new)  # the leased rows fill the device until the step is over
    assert [difference for _, difference in scene.reports] == [0.0]
    again = scene.embed(Item(None, Span(0, 2), key=scene.pipeline.key(new)))
    assert torch.equal(again.inputs_embeds, encode_one(new.feature))


def test_the_pipeline_chooses_among_hits_that_have_a_feature() -> None:
    tower = Tower()
    scene = Scene(tower, every=3)
    items = [Item(feature(seed, 1), Span(seed, 1), key=bytes([seed]) * 32) for seed in range(4)]
    scene.embed(*items)
    bare = [Item(None, item.spans, key=item.key) for item in items]
    for _ in range(3):
        scene.embed(*bare)
    assert scene.reports == []
    for _ in range(3):
        scene.embed(*items)
    assert scene.reports == [(items[number].key, 0.0) for number in (2, 1, 0, 3)]
    assert len(tower.encoded) == 8


def test_a_report_may_call_the_cache() -> None:
    scene = Scene(Tower())
    cache = scene.pipeline.cache
    scene.pipeline._shadow = Shadow(1, lambda *_: cache.advance_epoch())
    item = Item(feature(0, 2), Span(0, 2))
    first = scene.embed(item).inputs_embeds
    assert torch.equal(scene.embed(item).inputs_embeds, first)
    assert len(cache) == 0
    cache.check_integrity()


def test_a_second_encode_that_fails_costs_the_step_nothing(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = []
    tower = Tower(fails=lambda item: raise_it(errors[0]) if errors else None)
    scene = Scene(tower)
    item = Item(feature(0, 2), Span(0, 2))
    first = scene.embed(item).inputs_embeds
    errors.append(ValueError("too hot"))
    result = scene.embed(item)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds, first)
    assert scene.reports == []
    assert "too hot" in caplog.text
    errors.clear()
    tower.width = HIDDEN + 1
    assert scene.embed(item).errors == []
    assert "encode must return shape (num_rows, 4), got (2, 5)" in caplog.text
    assert scene.pipeline.cache.stats().leased_pages == 0


def test_ranks_that_agree_have_no_shadow() -> None:
    with pytest.raises(ValueError, match="agree and shadow exclude each other"):
        VisionPipeline(Tower(), make_cache(), agree=lambda miss: miss, shadow=Shadow(1, print))
    with pytest.raises(TypeError, match="shadow must be a Shadow, got int"):
        VisionPipeline(Tower(), make_cache(), shadow=100)  # type: ignore[arg-type]
