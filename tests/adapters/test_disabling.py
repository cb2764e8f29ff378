"""VITCACHE_DISABLE: every adapter does without its cache while the variable is set, counts and logs once."""

from __future__ import annotations

import logging
import threading
import timeit
from typing import Any

import pytest
import torch
from caches import make_cache
from torch import Tensor

pytest.importorskip("transformers")

from attached import (
    QWEN3,
    Tower,
    each_family,
    features,
    image_rows,
    logits,
    plain_kernels,  # noqa: F401
    tensors,
)
from tiny_models import IMAGE, TinyFamily, stock_method

import vitcache
from vitcache import Chunk, Item, Span
from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.disabling import DisabledCalls, is_disabled
from vitcache.adapters.transformers import ChunkedPrefill, attach, image_items, vision_pipeline
from vitcache.cache.embedding_cache import EmbeddingCache

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


@pytest.fixture
def disable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set VITCACHE_DISABLE to a value; None deletes it."""

    def set_to(value: str | None) -> None:
        if value is None:
            monkeypatch.delenv("VITCACHE_DISABLE", raising=False)
        else:
            monkeypatch.setenv("VITCACHE_DISABLE", value)

    set_to(None)
    return set_to


@pytest.mark.parametrize(
    ("value", "disabled"),
    [(None, False), ("", False), ("0", False), ("1", True), ("true", True), ("00", True), (" ", True)],
)
def test_variable_disables_for_every_value_but_empty_and_zero(
    disable: Any, value: str | None, disabled: bool
) -> None:
    disable(value)
    assert is_disabled() == disabled


def test_reading_the_variable_takes_microseconds(disable: Any) -> None:
    assert min(timeit.repeat(is_disabled, number=1000, repeat=5)) < 20e-3  # 1 microsecond on a free core


def test_disabled_calls_of_four_threads_are_all_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = DisabledCalls("an adapter")
    workers = [threading.Thread(target=lambda: [calls.count() for _ in range(500)]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert calls.number == 2000
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("VITCACHE_DISABLE is set: an adapter encodes every image")


@each_family
def test_disabled_attached_model_gives_the_bits_of_the_stock_model(
    family: TinyFamily, disable: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, stock = family.model(), family.model()
    attachment = attach(model)
    image_rows(model, family.call(0))
    entries, before, cached = len(attachment.cache), attachment.cache.stats(), attachment.stats()
    disable("1")
    prompt, call = family.prompt(model, 0, 1), family.call(0, 1)  # one image is in the cache
    assert torch.equal(logits(model, prompt), logits(stock, prompt))
    ours, theirs = features(model, call), features(stock, call)
    assert type(ours) is type(theirs)
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))
    assert (len(attachment.cache), attachment.cache.stats()) == (entries, before)
    stats = attachment.stats()
    assert stats.disabled_calls == 2
    assert stats == AttachStats(**vars(cached) | {"disabled_calls": 2})
    ours_only = [record for record in caplog.records if record.name.startswith("vitcache")]
    assert [record.message.split(":")[0] for record in ours_only] == ["VITCACHE_DISABLE is set"]
    disable(None)
    assert torch.equal(image_rows(model, family.call(0)), image_rows(stock, family.call(0)))
    after = attachment.stats()
    assert (after.hits - cached.hits, after.encoded) == (entries, cached.encoded)


def test_disabled_video_method_that_calls_the_image_method_is_counted_once(disable: Any) -> None:
    model = QWEN3.model()  # its video method calls its image method
    attachment = attach(model)
    call = QWEN3.call(0, 1)
    disable("1")
    with torch.no_grad():
        ours = model.model.get_video_features(*call.values())
        theirs = stock_method(QWEN3.model(), "video")(*call.values())
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))
    assert attachment.stats() == AttachStats(disabled_calls=1)
    assert len(attachment.cache) == 0


def test_disabled_call_that_raises_leaves_the_attachment_usable(disable: Any) -> None:
    model = QWEN3.model()
    attachment = attach(model)
    disable("1")
    with pytest.raises(TypeError):
        model.model.get_image_features(nonsense=1)
    disable(None)
    image_rows(model, QWEN3.call(0))
    assert attachment.stats() == AttachStats(encoded=1, disabled_calls=1)


def test_disabled_call_in_training_mode_forgets_the_earlier_entries(disable: Any) -> None:
    model = QWEN3.model()
    attachment = attach(model)
    image_rows(model, QWEN3.call(0))
    disable("1")
    model.train()
    image_rows(model, QWEN3.call(0))
    model.eval()
    disable(None)
    image_rows(model, QWEN3.call(0))
    assert attachment.stats().encoded == 2


def test_disabled_call_copies_pixels_to_the_device_of_the_tower(
    disable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = QWEN3.model()
    attach(model)
    moved: list[torch.device] = []
    to = Tensor.to

    def record(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        moved.append(args[0])
        return to(tensor, *args, **kwargs)

    encoder = model.model.get_image_features
    call = QWEN3.call(0)
    disable("1")
    stock, encoder.stock = encoder.stock, lambda **kwargs: moved.append(kwargs.keys())
    monkeypatch.setattr(Tensor, "to", record)
    encoder(**call)
    encoder.stock = stock
    assert moved == [torch.device("cpu")] * len(call) + [call.keys()]


class Step:
    """A pipeline of `vision_pipeline` and a prompt of two images, as one chunk or as several chunks."""

    def __init__(self, **options: Any) -> None:
        self.model = QWEN3.model()
        self.cache = make_cache(500, width=QWEN3.row_width)
        self.pipeline = vision_pipeline(self.model, self.cache, max_rows_per_encode=1, **options)
        self.tower = Tower(QWEN3, self.model)
        self.prompt = QWEN3.prompt(self.model, 0, 1)
        self.ids = self.prompt["input_ids"][0]
        self.tower.take()

    def items(self) -> list[Item]:
        names = "input_ids", "pixel_values", "image_grid_thw"
        return image_items(self.model, *(self.prompt[name] for name in names))

    def embed(self, chunks: list[Chunk], ids: Tensor | None = None) -> tuple[Tensor, Tensor, list[Any]]:
        ids = self.ids if ids is None else ids
        weight = self.model.get_input_embeddings().weight
        levels = QWEN3.row_width // weight.shape[1] - 1
        deepstack = torch.full((levels, len(ids), weight.shape[1]), torch.nan)
        result = self.pipeline.embed(chunks, ids, weight, deepstack=deepstack)
        return result.inputs_embeds, deepstack, result.errors


def test_disabled_pipeline_encodes_every_item_and_gives_the_same_rows(
    disable: Any, caplog: pytest.LogCaptureFixture
) -> None:
    step = Step()
    items, length = step.items(), len(step.ids)
    whole = [Chunk(items, 0, length)]
    expected = step.embed(whole)
    before = step.cache.stats()
    step.tower.take()
    disable("1")
    for _ in range(2):
        found = step.embed(whole)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert found[2] == []
        assert step.tower.take() == 2
    # A batch of two chunks of one request, the second one first.
    cut = length // 2
    ids = torch.cat([step.ids[cut:], step.ids[:cut]])
    chunks = [Chunk(items, cut, length - cut), Chunk(items, 0, cut, token_offset=length - cut)]
    found = step.embed(chunks, ids)
    order = [*range(length - cut, length), *range(length - cut)]
    assert torch.equal(found[0][order], expected[0])
    assert torch.equal(found[1][:, order], expected[1])
    assert step.tower.take() == 2  # an item of two chunks is encoded once
    assert step.cache.stats() == before
    handle = step.pipeline.prefetch(whole)
    assert handle.is_refused
    assert handle.done
    assert step.pipeline.disabled_calls == 3
    assert len(caplog.records) == 1
    disable(None)
    step.embed(whole)
    assert step.tower.take() == 0
    assert step.pipeline.disabled_calls == 3


def test_disabled_pipeline_reports_items_that_fail_and_places_the_rest(disable: Any) -> None:
    step = Step()
    good, bad = step.items()
    length = len(step.ids)
    expected = step.embed([Chunk([good, bad], 0, length)])[0]
    disable("1")
    error = OSError("damaged file")

    def load() -> Tensor:
        raise error

    grid = bad.encoder_kwargs["grid_thw"]
    rows = expected.shape[1]
    failing = [
        (Item(load, bad.spans, num_rows=bad.num_rows, grid_thw=grid), None, error),
        (Item(None, bad.spans, num_rows=bad.num_rows, grid_thw=grid), None, None),
        (Item(None, bad.spans, num_rows=1 << 60, grid_thw=grid), None, None),
        (Item(bad.feature, bad.spans, num_rows=bad.num_rows + 1, grid_thw=grid), bad.num_rows, None),
        (Item("photo.jpg", bad.spans, num_rows=bad.num_rows, grid_thw=grid), None, None),
    ]
    for item, count, cause in failing:
        found, _, errors = step.embed([Chunk([good, item], 0, length)])
        [failed] = errors
        assert (failed.chunk, failed.item, failed.expected, failed.found) == (0, 1, item.num_rows, count)
        assert cause is None or failed.cause is cause
        wanted = expected.clone()
        for span in bad.spans:
            wanted[span.start : span.stop] = 0
        assert torch.equal(found, wanted)
    assert rows == QWEN3.row_width // (1 + step.embed([])[1].shape[0])


def test_disabled_pipeline_refuses_wrong_arguments_and_a_closed_pipeline(disable: Any) -> None:
    step = Step()
    disable("1")
    for chunks, error in (("chunks", TypeError), ([step.items()], TypeError)):
        with pytest.raises(error, match="chunk"):
            step.pipeline.embed(chunks, step.ids, step.model.get_input_embeddings().weight)  # type: ignore[arg-type]
        with pytest.raises(error, match="chunk"):
            step.pipeline.prefetch(chunks)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        step.embed([Chunk(step.items(), 0, len(step.ids))], step.ids[:5])
    step.pipeline.close()
    with pytest.raises(RuntimeError, match="the pipeline was closed"):
        step.embed([])


def test_disabled_place_writes_the_rows_of_embed_and_leaves_text_rows(disable: Any) -> None:
    step = Step()
    chunks = [Chunk(step.items(), 0, len(step.ids))]
    expected, levels, _ = step.embed(chunks)
    is_image = step.ids == IMAGE
    before = step.cache.stats()
    step.tower.take()
    disable("1")
    inputs_embeds, deepstack = torch.full_like(expected, 7.0), torch.full_like(levels, 7.0)
    result = step.pipeline.place(chunks, inputs_embeds, deepstack=deepstack)
    assert result.inputs_embeds is inputs_embeds
    assert result.errors == []
    for found, wanted in ((inputs_embeds, expected), *zip(deepstack, levels, strict=True)):
        assert torch.equal(found[is_image], wanted[is_image])
        assert torch.all(found[~is_image] == 7)
    assert step.tower.take() == 2
    assert step.pipeline.disabled_calls == 1
    assert step.cache.stats() == before


def test_disabled_pipeline_places_given_rows_as_the_pipeline_does(disable: Any) -> None:
    """Narrow rows, rows of a width or dtype that the step refuses, and rows that are not rounded."""
    step = Step()
    hidden, wide = step.model.get_input_embeddings().weight.shape[1], QWEN3.row_width
    rows = [torch.randn(2, width) for width in (hidden, wide, hidden, 2 * hidden, 3)]
    items = [
        Item(None, Span(0, 2), rows=rows[0], row_width=hidden),
        Item(None, Span(2, 2), rows=rows[1]),
        Item(None, Span(4, 2), rows=rows[2]),  # no row_width: the cache's width is expected
        Item(None, Span(6, 2), rows=rows[3], row_width=2 * hidden),
        Item(None, Span(8, 2), rows=rows[4], row_width=3),
        Item(None, Span(10, 2), rows=rows[1].long()),
    ]
    chunks, ids = [Chunk(items, 0, 12)], torch.zeros(12, dtype=torch.long)
    wanted, wanted_levels, wanted_errors = step.embed(chunks, ids)
    disable("1")
    found, levels, errors = step.embed(chunks, ids)
    assert torch.equal(found, wanted)
    assert torch.equal(levels, wanted_levels)
    assert not levels[:, :2].any()
    assert torch.equal(found[:2], rows[0])
    assert [error.item for error in errors] == [2, 3, 4, 5]
    for ours, theirs in zip(errors, wanted_errors, strict=True):
        assert (ours[:4], type(ours.cause)) == (theirs[:4], type(theirs.cause))
    assert [str(errors[i].cause) for i in (1, 2)] == [
        f"row_width is {width}, it must be {hidden} or {wide}, the width of the destination's rows"
        for width in (2 * hidden, 3)
    ]


def test_disabled_pipeline_refuses_a_wrong_destination_before_it_encodes(disable: Any) -> None:
    step = Step()
    chunks = [Chunk(step.items(), 0, len(step.ids))]
    disable("1")
    for weight, error in ((None, TypeError), (torch.zeros(3), ValueError), (torch.zeros(9, 7), ValueError)):
        with pytest.raises(error):
            step.pipeline.embed(chunks, step.ids, weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs_embeds must be a tensor, got NoneType"):
        step.pipeline.place(chunks, None)  # type: ignore[arg-type]
    assert step.tower.take() == 0


@pytest.mark.parametrize("chunk_tokens", [3, 8, 64])
def test_disabled_chunked_prefill_gives_the_stock_logits_without_the_cache(
    disable: Any, chunk_tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    step = Step()
    disable("1")
    driver = ChunkedPrefill(step.model, step.pipeline, chunk_tokens, encode_ahead=True)
    hidden = torch.cat(list(driver.chunks(step.ids, step.items())), dim=1)
    with torch.no_grad():
        got = step.model.lm_head(hidden)
        wanted = step.model(**step.prompt).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert driver.disabled_calls == -(-len(step.ids) // chunk_tokens)
    assert step.pipeline.disabled_calls == 0
    assert len(step.cache) == 0
    stats = step.cache.stats()
    assert (stats.hits, stats.misses, stats.insertions) == (0, 0, 0)
    assert len(caplog.records) == 1
    calls = driver.disabled_calls
    disable(None)
    driver.reset()
    list(driver.chunks(step.ids, step.items()))
    assert driver.disabled_calls == calls
    assert len(step.cache) == 2


def test_disabled_chunked_prefill_names_the_item_that_fails(disable: Any) -> None:
    step = Step()
    good, bad = step.items()
    disable("1")
    cause = OSError("damaged file")

    def load() -> Tensor:
        raise cause

    broken = Item(load, bad.spans, key=bytes(32), **bad.encoder_kwargs)
    driver = ChunkedPrefill(step.model, step.pipeline)
    with pytest.raises(
        RuntimeError, match=f"item 1: expected {bad.num_rows} rows, got none: damaged"
    ) as caught:
        driver.prefill(step.ids, [good, broken])
    assert caught.value.__cause__ is cause


def test_variable_set_between_two_chunks_disables_the_second_one(disable: Any) -> None:
    step = Step()
    driver = ChunkedPrefill(step.model, step.pipeline, 8)
    for number, _ in enumerate(driver.chunks(step.ids, step.items())):
        if number == 0:
            disable("1")
    assert driver.disabled_calls == number


def test_core_calls_do_not_read_the_variable(disable: Any) -> None:
    disable("1")
    cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes="1KiB")
    chunk = Chunk([Item(torch.ones(1, 2), Span(1, 1))], 0, 2)
    with vitcache.VisionPipeline(lambda features, items: features, cache) as pipeline:
        pipeline.embed([chunk], torch.tensor([0, IMAGE * 0]), torch.ones(1, 2))
    assert len(cache) == 1
