"""Shadow mode: which hits are encoded again, and which differences are reported."""

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
    """Return the difference that a check reports."""
    reports: list[tuple[bytes, float]] = []
    Shadow(1, lambda *report: reports.append(report)).check(KEY, cached, lambda: fresh)
    [(key, difference)] = reports
    assert key == KEY
    return difference


def test_shadow_wants_every_nth_hit() -> None:
    shadow = Shadow(3, print)
    assert [shadow.wants() for _ in range(7)] == [False, False, True, False, False, True, False]
    assert all(Shadow(1, print).wants() for _ in range(3))


def test_shadow_counts_the_hits_of_all_threads_together() -> None:
    shadow, chosen = Shadow(10, print), []

    def hit() -> None:
        chosen.extend(shadow.wants() for _ in range(500))

    threads = [threading.Thread(target=hit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(chosen) == 200


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_shadow_refuses_an_invalid_every(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"every .*{every}"):
        Shadow(every, print)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_shadow_reports_the_largest_difference_after_rounding(dtype: torch.dtype) -> None:
    fresh = torch.randn(5, 7)
    cached = fresh.to(dtype, copy=True)
    assert compare(cached, fresh) == 0.0
    cached[3, 2] = 2.0
    fresh[3, 2] = -1.5
    assert compare(cached, fresh) == 3.5


def test_shadow_reports_infinity_if_a_value_that_is_not_finite_differs() -> None:
    cached = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]])
    assert compare(cached, cached.clone()) == 0.0
    for column, value in ((0, 1.0), (1, -math.inf), (2, 1.0), (3, math.nan)):
        fresh = cached.clone()
        fresh[0, column] = value
        assert compare(cached, fresh) == math.inf


def test_shadow_reports_infinity_for_other_shapes_and_zero_for_no_rows() -> None:
    assert compare(torch.zeros(2, 3), torch.zeros(3, 3)) == math.inf
    assert compare(torch.zeros(2, 3), torch.zeros(2, 4)) == math.inf
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0


def raise_error(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("encode", "report"),
    [
        (lambda: raise_error(OSError("no file")), print),
        (lambda: torch.zeros(1, 1), lambda *_: raise_error(OSError())),
    ],
    ids=["encode", "report"],
)
def test_shadow_check_logs_exceptions_of_encode_and_report(
    encode: Any, report: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Shadow(1, report).check(KEY, torch.zeros(1, 1), encode)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("vitcache.shadow", logging.ERROR)
    assert KEY.hex() in record.message
    assert record.exc_info[0] is OSError


class Scene:
    """A pipeline in shadow mode with its own cache, and the reports of its checks."""

    def __init__(self, tower: Tower, *, every: int = 1, **options: int) -> None:
        self.reports: list[tuple[bytes, float]] = []
        cache = make_cache(**options)
        shadow = Shadow(every, lambda *report: self.reports.append(report))
        self.pipeline = VisionPipeline(tower, cache, shadow=shadow)

    def embed(self, *items: Item) -> EmbedResult:
        chunk = Chunk(items, 0, max(span.stop for item in items for span in item.spans))
        return self.pipeline.embed([chunk], make_ids(chunk.length), make_weight())


@pytest.mark.parametrize("packed", [False, True])
def test_embed_reports_an_outdated_entry_and_still_places_it(packed: bool) -> None:
    tower = Tower(reuses_memory=True, packed=packed)
    scene = Scene(tower)
    key = b"a" * 32
    old = Item(feature(0, 3), Span(0, 3), key=key)
    first = scene.embed(old).inputs_embeds.clone()
    assert scene.reports == []
    assert torch.equal(scene.embed(old).inputs_embeds, first)
    assert scene.reports == [(key, 0.0)]
    # `outdated` has the key of the entry, but another image. `missing` is not cached.
    outdated, missing = Item(feature(1, 3), Span(0, 3), key=key), Item(feature(2, 2), Span(3, 2))
    result = scene.embed(outdated, missing)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds[:3], first)
    assert torch.equal(result.inputs_embeds[3:], encode_one(missing.feature))
    difference = (encode_one(outdated.feature) - encode_one(old.feature)).abs().max()
    assert scene.reports[1:] == [(key, float(difference))]
    assert torch.equal(scene.embed(old).inputs_embeds, first)  # the new rows were not inserted
    scene.pipeline.cache.check_integrity()


def test_rejected_rows_are_inserted_before_the_shadow_encode() -> None:
    scene = Scene(Tower(reuses_memory=True), device_pages=2, host_pages=4)
    old, new = Item(feature(0, 3), Span(0, 3)), Item(feature(1, 2), Span(3, 2))
    scene.embed(old)
    scene.embed(old, new)  # the leased rows fill the device tier until the end of the step
    assert [difference for _, difference in scene.reports] == [0.0]
    hit = scene.embed(Item(None, Span(0, 2), key=scene.pipeline.key(new)))
    assert torch.equal(hit.inputs_embeds, encode_one(new.feature))


def test_shadow_of_a_pipeline_counts_only_hits_with_a_feature() -> None:
    tower = Tower()
    scene = Scene(tower, every=3)
    items = [Item(feature(seed, 1), Span(seed, 1), key=bytes([seed]) * 32) for seed in range(4)]
    scene.embed(*items)
    without_feature = [Item(None, item.spans, key=item.key) for item in items]
    for _ in range(3):
        scene.embed(*without_feature)
    assert scene.reports == []
    for _ in range(3):
        scene.embed(*items)
    assert scene.reports == [(items[number].key, 0.0) for number in (2, 1, 0, 3)]
    assert len(tower.encoded) == 8


def test_shadow_report_may_call_the_cache() -> None:
    scene = Scene(Tower())
    cache = scene.pipeline.cache
    scene.pipeline._steps.shadow = Shadow(1, lambda *_: cache.advance_epoch())
    item = Item(feature(0, 2), Span(0, 2))
    first = scene.embed(item).inputs_embeds
    assert torch.equal(scene.embed(item).inputs_embeds, first)
    assert len(cache) == 0
    cache.check_integrity()


def test_shadow_encode_that_fails_is_logged_and_the_step_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = []
    tower = Tower(fails=lambda item: raise_error(errors[0]) if errors else None)
    scene = Scene(tower)
    item = Item(feature(0, 2), Span(0, 2))
    first = scene.embed(item).inputs_embeds
    errors.append(ValueError("encode failed"))
    result = scene.embed(item)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds, first)
    assert scene.reports == []
    assert "encode failed" in caplog.text
    errors.clear()
    tower.width = HIDDEN + 1
    assert scene.embed(item).errors == []
    assert "encode must return shape (num_rows, 4), got (2, 5)" in caplog.text
    assert scene.pipeline.cache.stats().leased_pages == 0


def test_pipeline_refuses_shadow_with_agree_and_other_types() -> None:
    with pytest.raises(ValueError, match="agree and shadow cannot be combined"):
        VisionPipeline(Tower(), make_cache(), agree=lambda miss: miss, shadow=Shadow(1, print))
    with pytest.raises(TypeError, match="shadow must be a Shadow, got int"):
        VisionPipeline(Tower(), make_cache(), shadow=100)  # type: ignore[arg-type]
