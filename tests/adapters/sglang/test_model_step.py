"""`ModelStep`: one cache, pipeline and set of encoders per model, and its size."""

from __future__ import annotations

import gc
import logging
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.model import HIDDEN, Model, rows_of
from sglang_fakes.requests import Inputs, Modality, feature, image
from sglang_fakes.scene import Scene, Window

from vitcache import EmbeddingCache, PinnedRing, VisionPipeline
from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.encoder_calls import EncoderCalls
from vitcache.adapters.sglang.failed_items import request_name
from vitcache.adapters.sglang.item_factory import ItemFactory
from vitcache.adapters.sglang.model_cache import StepShape, make_cache
from vitcache.adapters.sglang.model_memory import ModelMemory
from vitcache.adapters.sglang.model_step import ModelStep
from vitcache.adapters.sglang.options import Options
from vitcache.adapters.sglang.request_items import RequestItems
from vitcache.pipeline.items import Chunk

CPU = torch.device("cpu")


def make_step(model: Any, levels: int = 0, device_bytes: int = 1 << 16, **options: Any) -> ModelStep:
    shape = StepShape(HIDDEN, levels, torch.float32, CPU)
    made = Options(**options)
    memory = ModelMemory(make_cache(shape, device_bytes, made), None)
    return ModelStep(model, shape, memory, made, Counts())


@pytest.mark.parametrize("device_bytes", [1, 100, 1000])
def test_tier_smaller_than_an_item_gives_the_right_rows(
    monkeypatch: pytest.MonkeyPatch, device_bytes: int
) -> None:
    scene = Scene(monkeypatch, Model(levels=2), device_bytes=device_bytes)
    inputs = Inputs([image(1, (0, 9)), image(2, (10, 40), modality=Modality.AUDIO)])
    for start in range(0, 44, 8):
        scene.step(Window(inputs, start, 8))
    assert scene.service.stats().errors == 0
    assert scene.model.num_encoded == 2  # rows that the cache rejects are kept for the next chunk


def test_host_tier_keeps_the_rows_that_the_device_tier_evicts(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, device_bytes=10 * HIDDEN * 4, host_bytes=1 << 16)
    windows = [Window(Inputs([image(seed, (0, 7))]), 0, 9) for seed in range(4)]
    for window in [*windows, *windows]:
        scene.step(window)
    assert scene.model.num_encoded == 4


def test_encoder_gets_at_most_the_rows_of_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, max_rows_per_encode=8)
    inputs = Inputs([image(seed, (5 * seed, 5 * seed + 3)) for seed in range(7)])
    scene.step(Window(inputs, 0, 40))
    assert [len(call) for call in scene.model.calls] == [2, 2, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_another_dtype_are_rounded_to_that_of_the_text(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    scene = Scene(monkeypatch)
    scene.table = scene.table.to(dtype)
    window = Window(Inputs([image(1, (1, 4))]), 0, 6)
    for _ in range(2):
        ids = torch.zeros(6, dtype=torch.long)
        rows, _ = scene.embed(window, ids=ids)
        assert torch.equal(rows[1:5], rows_of(Modality.IMAGE, feature(1, 4)).to(dtype))
    assert scene.model.num_encoded == 1


def test_several_widths_in_one_step_have_their_own_deepstack_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, Model(levels=3))
    kinds = (Modality.AUDIO, Modality.IMAGE, Modality.VIDEO, Modality.AUDIO)
    items = [image(seed, (4 * seed, 4 * seed + 2), modality=kind) for seed, kind in enumerate(kinds)]
    for _ in range(2):
        scene.step(
            Window(Inputs(items[:2]), 0, 9), Window(None, 0, 3), Window(Inputs(items), 5, 10), padding=2
        )
    assert scene.service.stats().errors == 0


def test_precomputed_rows_have_deepstack_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, Model(levels=1))
    wide = torch.arange(3.0 * 2 * HIDDEN).reshape(3, 2 * HIDDEN)
    inputs = Inputs([image(1, (1, 3), feature=None, precomputed_embeddings=wide), image(2, (5, 6))])
    narrow = image(3, (8, 10), feature=None, precomputed_embeddings=wide[:, :HIDDEN])
    scene.step(Window(inputs, 0, 8), Window(Inputs([narrow]), 6, 5), failed=[narrow])


def test_spans_of_two_items_may_interleave(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    inputs = Inputs([image(1, (0, 1), (4, 5), (8, 8)), image(2, (2, 3), (6, 7))])
    for start in range(10):
        scene.step(Window(inputs, start, 10 - start))
    assert scene.model.num_encoded == 2


def test_empty_steps_count_and_encode_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.step(Window(Inputs([]), 0, 4))
    scene.step(Window(Inputs([image(1, (0, 3))]), 0, 0))
    scene.step(Window(Inputs([image(1, (0, 3))]), 4, 3))
    scene.step()
    stats = scene.service.stats()
    assert (stats.steps, stats.encodes, scene.model.calls) == (4, 0, [])


def test_failed_item_is_logged_with_its_request_and_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(monkeypatch, Model(form=lambda rows: [part[1:] for part in rows]))
    bad = image(1, (2, 5))
    windows = (Window(None, 0, 3), Window(Inputs([]), 0, 2), Window(Inputs([bad]), 0, 7))
    scene.step(*windows, failed=[bad])
    [message] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert message.startswith("vitcache: item 0 of request id-2 has no rows")
    assert "expected 4 rows, got 3" in message


def test_first_step_logs_the_size_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vitcache.adapters.sglang"):
        scene = Scene(monkeypatch, device_bytes="3 MiB", host_bytes="2 MiB")
        for seed in range(2):
            scene.step(Window(Inputs([image(seed, (0, 3))]), 0, 5))
    [message] = [record.getMessage() for record in caplog.records]
    assert all(text in message for text in ("Model", "3 MiB on cpu", "2 MiB in host memory"))


def test_step_of_a_collected_model_is_an_orphan() -> None:
    model = Model()
    step = make_step(model)
    assert not step.is_orphan
    del model
    gc.collect()
    assert step.is_orphan
    step.close()


def test_step_without_a_model_is_no_orphan() -> None:
    step = make_step(None)
    assert not step.is_orphan
    assert step.model() is None
    step.close()


def test_model_that_cannot_be_referred_to_weakly_is_kept() -> None:
    class Slots:
        __slots__ = ("deepstack_visual_indexes",)

    step = make_step(Slots())
    gc.collect()
    assert not step.is_orphan
    assert isinstance(step.model(), Slots)
    step.close()


def test_only_tensors_that_the_encoder_does_not_move_pass_the_ring() -> None:
    """With the host's ring, in place of that of a GPU."""
    calls, counts = EncoderCalls(Counts(), torch.float32), Counts()
    model = Model()
    calls.use(model, None)
    factory = ItemFactory(lambda _: HIDDEN, calls.embedder, CPU, torch.float32, False, counts)
    inputs = Inputs([image(1, (0, 3)), image(2, (5, 6)), image(3, (8, 9))])
    inputs.mm_items[1].feature = inputs.mm_items[1].feature.numpy()  # type: ignore[union-attr]
    features = [item.feature for item in inputs.mm_items if item]
    items = RequestItems.of(inputs).read(inputs.mm_items, 0, 12, factory)
    rows = torch.full((12, HIDDEN), float("nan"))
    with (
        PinnedRing(1 << 16, backend="host") as ring,
        EmbeddingCache(HIDDEN, device="cpu", dtype=torch.float32, device_bytes=1 << 16) as cache,
        VisionPipeline(calls.encode, cache, ring=ring) as pipeline,
    ):
        assert pipeline.place([Chunk(items, 0, 12)], rows).errors == []
        assert ring.stats().copies == 2
    for item, value in zip(inputs.mm_items, features, strict=True):
        assert item is not None
        assert item.feature is value  # SGLang's item keeps its feature in host memory
        [(start, last)] = item.offsets
        assert torch.equal(rows[start : last + 1], rows_of(Modality.IMAGE, torch.as_tensor(value)))
    [seen] = model.calls
    assert [item is source for item, source in zip(seen, inputs.mm_items, strict=True)] == [
        False,
        True,
        False,
    ]


def raise_error(items: Any) -> Any:
    raise ValueError("damaged")


def raise_second_error(items: Any) -> Any:
    try:
        raise KeyError(len(items))
    except KeyError as error:
        raise RuntimeError("damaged") from error


def lose_a_row(items: Any) -> Any:
    return torch.zeros(sum(len(item.feature) for item in items) - 1, HIDDEN)


@pytest.mark.parametrize("encode", [raise_error, raise_second_error, lose_a_row])
def test_failed_items_die_with_their_request_without_a_collection(
    monkeypatch: pytest.MonkeyPatch, encode: Any
) -> None:
    """An error refers to its frames, and these refer to the features and to the error."""
    scene = Scene(monkeypatch, Model())
    scene.model.get_image_feature = encode  # type: ignore[method-assign]
    gc.collect()
    gc.disable()
    try:
        for is_released in (False, True):
            items = [image(number, (5 * number, 5 * number + 3)) for number in range(3)]
            if is_released:
                items[1].feature = None
            seen = [weakref.ref(item) for item in items]
            scene.step(Window(Inputs([*items]), 0, 12), failed=items)
            del items
            assert [each() for each in seen] == [None] * 3
    finally:
        gc.enable()
    assert scene.service.stats().errors == 6


A, B = object(), object()


def test_request_has_the_id_of_the_batch_whatever_its_number() -> None:
    found = SimpleNamespace(mm_inputs=[None, A, B], rids=["text", "first", "second"])
    assert [request_name(found, request, 0) for request in (A, B)] == ["first", "second"]


@pytest.mark.parametrize(
    "found",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(mm_inputs=[A], rids=None),
        SimpleNamespace(mm_inputs=None, rids=["a"]),
        SimpleNamespace(mm_inputs=[B], rids=["a"]),
    ],
)
def test_request_without_a_known_id_has_its_number(found: Any) -> None:
    assert request_name(found, A, 7) == "number 7 of a step"
