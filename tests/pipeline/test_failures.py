"""Failures: only the faulty item fails, and invalid arguments are refused before any work."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from pipeline_scene import (
    HIDDEN,
    VOCABULARY,
    Tower,
    embed,
    encode_one,
    feature,
    make_ids,
    make_weight,
)

from vitcache import Chunk, Item, PinnedRing, Span, VisionPipeline

WEIGHT = make_weight()


class Wrapped(torch.Tensor):
    """A tensor subclass without memory of its own."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> None:
        raise NotImplementedError


def fail_for(*bad: Item) -> Any:
    def fails(item: Item) -> None:
        if any(item is other for other in bad):
            raise ZeroDivisionError(f"item of {item.num_rows} rows")

    return fails


def test_item_whose_encode_raises_fails_alone_and_is_retried_by_the_next_step(
    maybe_ring: PinnedRing | None,
) -> None:
    good = [Item(feature(seed, 2 + seed), Span(10 * seed, 2 + seed)) for seed in range(3)]
    bad = Item(feature(9, 4), [Span(5, 2), Span(15, 2, 2)])
    tower = Tower(fails=fail_for(bad), reuses_memory=True)
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring)
    chunks = [Chunk([good[0], bad], 0, 20), Chunk([good[1], bad, good[2]], 0, 30, 20)]
    errors = embed(pipeline, chunks, 50, failed=[bad])
    assert [error[:4] for error in errors] == [(0, 1, 4, None), (1, 1, 4, None)]
    assert all(isinstance(error.cause, ZeroDivisionError) for error in errors)
    assert len(tower.calls) == 1 + 4
    assert len(pipeline.cache) == 3
    # The next step encodes the failed item again.
    tower.fails = None
    assert embed(pipeline, chunks, 50) == []


def test_failed_encode_frees_its_tensors_before_the_next_encode() -> None:
    # After an out-of-memory error the retry, item by item, needs the memory of the failed encode.
    items = [Item(feature(seed, 2), Span(4 * seed, 2)) for seed in range(3)]
    allocated: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def encode(features: list[torch.Tensor], batch: list[Item]) -> list[torch.Tensor]:
        alive.append(sum(ref() is not None for ref in allocated))
        activations = torch.cat(features)
        allocated.append(weakref.ref(activations))
        if len(batch) > 1 or batch[0] is not items[2]:
            raise MemoryError(f"{len(activations)} patches")
        return [encode_one(activations)]

    result = VisionPipeline(encode, make_cache()).embed([Chunk(items, 0, 12)], make_ids(12), WEIGHT)
    assert [error.item for error in result.errors] == [0, 1]
    assert alive == [0] * 4
    assert all(ref() is None for ref in allocated)


class FaultyTower(Tower):
    """Returns wrong rows for items of four rows: `spoil` changes the right rows."""

    def __init__(self, spoil: Any, *, packed: bool = False) -> None:
        super().__init__(packed=packed)
        self.spoil = spoil

    def __call__(self, features: list[torch.Tensor], items: list[Item]) -> Any:
        self.packed, packed = False, self.packed
        rows = list(super().__call__(features, items))
        self.packed = packed
        rows = [
            self.spoil(part) if item.num_rows == 4 else part for part, item in zip(rows, items, strict=True)
        ]
        return torch.cat(rows) if packed else rows


@pytest.mark.parametrize(
    ("spoil", "found", "error", "message"),
    [
        (lambda rows: rows[:3], 3, ValueError, "encode must return 4 rows for the item, got 3"),
        (
            lambda rows: torch.cat([rows, rows]),
            8,
            ValueError,
            "encode must return 4 rows for the item, got 8",
        ),
        (
            lambda rows: rows[:, :2],
            None,
            ValueError,
            r"encode must return shape \(num_rows, 4\), got \(4, 2\)",
        ),
        (
            lambda rows: rows[None],
            None,
            ValueError,
            r"encode must return shape \(num_rows, 4\), got \(1, 4, 4\)",
        ),
        (lambda rows: rows.double(), None, TypeError, "got a torch.strided tensor of torch.float64"),
        (lambda rows: rows.to_sparse(), None, TypeError, r"got a torch.sparse_coo tensor of torch.float32"),
        (lambda rows: rows.to("meta"), None, ValueError, "encode must return rows on cpu, got rows on meta"),
        (lambda rows: rows.tolist(), None, TypeError, "encode must return a tensor per item, got list"),
    ],
)
def test_item_with_wrong_encoder_output_fails_alone(
    spoil: Any, found: int | None, error: type[Exception], message: str
) -> None:
    pipeline = VisionPipeline(FaultyTower(spoil), make_cache())
    items = [
        Item(feature(0, 2), Span(0, 2)),
        Item(feature(1, 4), Span(4, 4)),
        Item(feature(2, 3), Span(9, 3)),
    ]
    errors = embed(pipeline, [Chunk(items, 0, 14)], 14, failed=[items[1]])
    ((chunk, item, num_expected, num_found, cause),) = errors
    assert (chunk, item, num_expected, num_found) == (0, 1, 4, found)
    with pytest.raises(error, match=message):
        raise cause
    assert len(pipeline.cache) == 2


def test_packed_output_of_wrong_length_fails_only_the_item_with_wrong_rows() -> None:
    tower = FaultyTower(lambda rows: rows[:3], packed=True)
    pipeline = VisionPipeline(tower, make_cache())
    items = [
        Item(feature(0, 2), Span(0, 2)),
        Item(feature(1, 4), Span(4, 4)),
        Item(feature(2, 3), Span(9, 3)),
    ]
    (error,) = embed(pipeline, [Chunk(items, 0, 14)], 14, failed=[items[1]])
    assert error[:4] == (0, 1, 4, 3)
    assert [len(call) for call in tower.calls] == [3, 1, 1, 1]


@pytest.mark.parametrize("output", [None, 3, [], [torch.zeros(2, HIDDEN)] * 2])
def test_encoder_that_returns_wrong_types_or_counts_fails_every_item(output: Any) -> None:
    pipeline = VisionPipeline(lambda features, items: output, make_cache())
    items = [
        Item(feature(0, 2), Span(0, 2)),
        Item(feature(1, 4), Span(4, 4)),
        Item(feature(2, 3), Span(9, 3)),
    ]
    errors = embed(pipeline, [Chunk(items, 0, 14)], 14, failed=items)
    assert [error.item for error in errors] == [0, 1, 2]
    assert all(error.found is None for error in errors)
    assert len(pipeline.cache) == 0


def test_embed_places_rows_of_nan() -> None:
    pipeline = VisionPipeline(lambda features, items: [torch.full((2, HIDDEN), float("nan"))], make_cache())
    result = pipeline.embed([Chunk([Item(feature(0, 2), Span(0, 2))], 0, 3)], make_ids(3), WEIGHT)
    assert result.errors == []
    assert result.inputs_embeds[:2].isnan().all()


def raise_key_error() -> None:
    raise KeyError("missing")


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (Item(raise_key_error, Span(4, 4)), KeyError),
        (Item(raise_key_error, Span(4, 4), key=b"a" * 32), KeyError),
        (Item("a path", Span(4, 4)), TypeError),
        (Item("a path", Span(4, 4), key=b"a" * 32), TypeError),
        (Item(feature(1, 4), Span(4, 4), what=object()), TypeError),
        (Item(None, Span(4, 4), key=b"a" * 32), ValueError),
        (Item(lambda: None, Span(4, 4)), ValueError),
        (Item(np.array(["a"]), Span(4, 4), key=b"a" * 32), TypeError),
        (Item(None, Span(4, 4), rows=torch.zeros(4, 3)), ValueError),
        (Item(None, Span(4, 4), rows=torch.zeros(4, HIDDEN, dtype=torch.float64)), TypeError),
        (Item(None, Span(4, 4), rows=torch.zeros(4, HIDDEN, device="meta")), TypeError),
        (Item(None, Span(4, 4), rows=torch.zeros(4, HIDDEN).to_sparse()), TypeError),
    ],
)
def test_item_that_cannot_be_loaded_hashed_moved_or_placed_fails_alone(
    maybe_ring: PinnedRing | None, item: Item, error: type[Exception]
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache(), ring=maybe_ring)
    items = [Item(feature(0, 2), Span(0, 2)), item]
    errors = embed(pipeline, [Chunk(items, 0, 9)], 9, failed=[item])
    assert [failed[:4] for failed in errors] == [(0, 1, 4, None)]
    assert isinstance(errors[0].cause, error)
    assert len(tower.encoded) == len(pipeline.cache) == 1


def test_item_with_an_absurd_num_rows_fails_alone() -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [Item(feature(0, 2), Span(0, 2)), Item(feature(1, 4), Span(4, 4), num_rows=2**62)]
    (error,) = embed(pipeline, [Chunk(items, 0, 9)], 9, failed=[items[1]])
    assert error[:4] == (0, 1, 2**62, 4)


@pytest.mark.parametrize("first", [None, raise_key_error])
def test_embed_loads_the_equal_item_whose_feature_can_be_loaded(first: Any) -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    key = b"k" * 32
    items = [Item(first, Span(0, 2), key=key), Item(feature(0, 2), Span(4, 2), key=key)]
    result = pipeline.embed([Chunk(items, 0, 6)], make_ids(6), WEIGHT)
    assert result.errors == []
    assert torch.equal(result.inputs_embeds[:2], encode_one(feature(0, 2)))
    assert torch.equal(result.inputs_embeds[4:], encode_one(feature(0, 2)))


def test_item_whose_copy_raises_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with PinnedRing(1 << 16, backend="host") as ring:
        pipeline = VisionPipeline(Tower(), make_cache(), ring=ring)
        items = [Item(feature(0, 2), Span(0, 2)), Item(feature(1, 4), Span(4, 4))]
        copy_to = ring.copy_to

        def fail(dst: Any, src: Any, **options: Any) -> Any:
            if src.shape[0] == 8:
                raise TimeoutError("the ring is full")
            return copy_to(dst, src, **options)

        monkeypatch.setattr(ring, "copy_to", fail)
        (error,) = embed(pipeline, [Chunk(items, 0, 9)], 9, failed=[items[1]])
        assert isinstance(error.cause, TimeoutError)


def test_interrupted_step_leaves_neither_leases_nor_claims() -> None:
    def interrupt(item: Item) -> None:
        if len(tower.calls) == 3:
            raise KeyboardInterrupt

    tower = Tower(fails=interrupt)
    pipeline = VisionPipeline(tower, make_cache(), max_rows_per_encode=2)
    items = [Item(feature(seed, 2), Span(2 * seed, 2)) for seed in range(4)]
    with pytest.raises(KeyboardInterrupt):
        pipeline.embed([Chunk(items, 0, 8)], make_ids(8), WEIGHT)
    gc.collect()
    tower.fails = None
    assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []


def test_caller_stream_waits_for_the_encoder_stream_after_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stream:
        device = torch.device("cpu")

        def __init__(self) -> None:
            self.waits: list[Stream] = []

        def wait_stream(self, awaited: Stream) -> None:
            self.waits.append(awaited)

    def interrupt(item: Item) -> None:
        raise KeyboardInterrupt

    caller_stream, encoder_stream = Stream(), Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: caller_stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    pipeline = VisionPipeline(Tower(fails=interrupt), make_cache(), stream=encoder_stream)
    with pytest.raises(KeyboardInterrupt):
        pipeline.embed([Chunk([Item(feature(0, 2), Span(0, 2))], 0, 3)], make_ids(3), WEIGHT)
    assert encoder_stream.waits == [caller_stream]
    assert caller_stream.waits == [encoder_stream]


def test_embed_with_a_closed_cache_raises_and_encodes_nothing() -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache())
    pipeline.cache.close()
    with pytest.raises(RuntimeError, match="the cache was closed"):
        pipeline.embed([Chunk([Item(feature(0, 2), Span(0, 2))], 0, 3)], make_ids(3), WEIGHT)
    assert tower.calls == []


def test_embed_on_a_refused_stream_raises_and_encodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> None:
        raise RuntimeError("the current stream is refused")

    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache())
    chunks = [Chunk([Item(feature(0, 2), Span(0, 2))], 0, 3)]
    with monkeypatch.context() as patch:
        patch.setattr("vitcache.pipeline.step_runner.check_current_stream", refuse)
        with pytest.raises(RuntimeError, match="the current stream is refused"):
            pipeline.embed(chunks, make_ids(3), WEIGHT)
    assert tower.calls == []
    assert embed(pipeline, chunks, 3) == []


def test_closed_pipeline_refuses_embed_and_prefetch_and_closes_again(maybe_ring: PinnedRing | None) -> None:
    with VisionPipeline(Tower(), make_cache(), ring=maybe_ring) as pipeline:
        pass
    pipeline.close()
    with pytest.raises(RuntimeError, match="the pipeline was closed"):
        pipeline.prefetch([])
    with pytest.raises(RuntimeError, match="the pipeline was closed"):
        pipeline.embed([], make_ids(1), WEIGHT)


# Invalid arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"chunks": 3}, TypeError, "chunks must be a list of Chunk"),
        (
            {"chunks": [Chunk([], 0, 9)]},
            IndexError,
            r"chunk 0 covers tokens \[0, 9\) of the batch, which has 8 tokens",
        ),
        (
            {"chunks": [Chunk([], 0, 4), Chunk([], 0, 4, 3)]},
            ValueError,
            r"chunk 0 covers tokens \[0, 4\) of the batch, chunk 1 begins at token 3",
        ),
        ({"input_ids": [1, 2]}, TypeError, "input_ids must be a tensor, got list"),
        ({"weight": None}, TypeError, "weight must be a tensor"),
        ({"weight": WEIGHT.numpy()}, TypeError, "weight must be a tensor, got ndarray"),
        ({"weight": torch.zeros(5, 3)}, ValueError, "the cache has rows of width 4, expected 3"),
        (
            {"deepstack": torch.zeros(1, 8, HIDDEN)},
            ValueError,
            "the cache has rows of width 4, expected 8",
        ),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight must be on cpu, the cache's device, got meta"),
        (
            {"weight": Wrapped(WEIGHT)},
            TypeError,
            "weight must be a plain tensor, got Wrapped, whose rows cannot be read",
        ),
        ({"weight": WEIGHT.double()}, TypeError, "weight is torch.float64"),
        ({"input_ids": torch.zeros(8)}, TypeError, "input_ids are torch.float32"),
        ({"out": torch.zeros(7, HIDDEN)}, ValueError, r"out has shape \(7, 4\), it must be \(8, 4\)"),
        ({"out": torch.zeros(8, HIDDEN, dtype=torch.int32)}, TypeError, "out is torch.int32"),
        ({"out": WEIGHT[:1].expand(8, HIDDEN)}, ValueError, "out has stride 0 between rows"),
        ({"scale": "large"}, TypeError, "scale must be a real number or None, got str"),
        ({"text_scale": True}, TypeError, "text_scale must be a real number or None, got bool"),
        (
            {"chunks": [Chunk([Item(None, Span(0, 2)), Item(None, Span(1, 2))], 0, 8)]},
            ValueError,
            r"chunk 0: spans overlap: one of item 0 covers tokens \[0, 2\) of the prompt",
        ),
        (
            {"input_ids": make_ids(8).fill_(VOCABULARY)},
            IndexError,
            r"input_ids\[2\] is 11, the weight has 11",
        ),
        ({"input_ids": make_ids(8).fill_(-1).int()}, IndexError, r"input_ids\[2\] is -1, the weight has 11"),
    ],
)
def test_embed_refuses_invalid_arguments_before_it_loads_or_encodes(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    tower = Tower()
    pipeline = VisionPipeline(tower, make_cache())
    loads: list[int] = []
    item = Item(lambda: loads.append(1), Span(0, 2), key=bytes(32))
    good = {"chunks": [Chunk([item], 0, 8)], "input_ids": make_ids(8), "weight": WEIGHT}
    with pytest.raises(error, match=message):
        pipeline.embed(**{**good, **arguments})
    assert (tower.calls, loads) == ([], [])
    assert len(pipeline.cache) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encode": 3}, TypeError, "encode must be callable, got int"),
        ({"cache": {}}, TypeError, "cache must be an EmbeddingCache, got dict"),
        ({"namespace": "a"}, TypeError, "namespace must be bytes or a Namespace, got str"),
        ({"max_rows_per_encode": 0}, ValueError, "max_rows_per_encode is 0, it must be at least 1"),
        ({"max_rows_per_encode": 1.5}, TypeError, "max_rows_per_encode must be an int, got 1.5"),
        (
            {"feature_dtype": torch.float32},
            TypeError,
            "feature_dtype must be bfloat16, float16 or None, got torch.float32",
        ),
        ({"agree": 1}, TypeError, "agree must be callable, got int"),
        ({"ring": 1}, TypeError, "ring must be a PinnedRing, got int"),
        ({"feature_dtype": np.array([None], dtype=object)}, TypeError, "feature_dtype must be"),
        ({"stream": 5}, TypeError, "stream must be a torch.cuda.Stream, got int"),
        ({"stream": torch.zeros(1)}, TypeError, "stream must be a torch.cuda.Stream, got Tensor"),
        ({"shadow": 1}, TypeError, "shadow must be a Shadow, got int"),
        ({"move_features": 1}, TypeError, "move_features must be a bool, got int"),
        ({"keep_bytes": True}, TypeError, "keep_bytes must be an int or a str such as '8GiB', got True"),
        ({"max_rows_per_encode": True}, TypeError, "max_rows_per_encode must be an int, got True"),
    ],
)
def test_pipeline_refuses_invalid_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    good: dict[str, Any] = {"encode": Tower(), "cache": make_cache()}
    with pytest.raises(error, match=message):
        VisionPipeline(**{**good, **arguments})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipeline: pipeline.key(None), "item must be an Item, got NoneType"),
        (lambda pipeline: pipeline.key(b"key"), "item must be an Item, got bytes"),
        (lambda pipeline: pipeline.cancel(None), "handle must be a Prefetch, got NoneType"),
        (lambda pipeline: pipeline.prefetch(None), "chunks must be a list of Chunk, got NoneType"),
        (lambda pipeline: pipeline.prefetch([None]), "chunk 0 must be a Chunk, got NoneType"),
        (lambda pipeline: pipeline.prefetch([], encode=5), "encode must be a bool, got 5"),
        (lambda pipeline: pipeline.place([], None), "inputs_embeds must be a tensor, got NoneType"),
    ],
)
def test_pipeline_methods_refuse_arguments_of_wrong_types(call: Any, message: str) -> None:
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        with pytest.raises(TypeError, match=message):
            call(pipeline)
        assert embed(pipeline, [Chunk([Item(feature(0, 2), Span(0, 2))], 0, 2)], 2) == []


@pytest.mark.parametrize("name", ["start", "length", "token_offset"])
@pytest.mark.parametrize("value", [True, None, 1.5, "3", -1])
def test_a_number_of_a_chunk_that_is_set_later_is_checked_by_the_step(name: str, value: Any) -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    chunk = Chunk([Item(feature(0, 2), Span(0, 2))], 0, 2)
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        Chunk([], **{"start": 0, "length": 0, name: value})
    setattr(chunk, name, value)
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        pipeline.embed([chunk], make_ids(2), WEIGHT)


def test_encoder_that_empties_its_lists_gets_the_numbers_of_the_call() -> None:
    def encode(features: list[torch.Tensor], items: list[Item]) -> list[torch.Tensor]:
        return [encode_one(features.pop(0)) for _ in range(len(items)) if items.pop(0)]

    pipeline = VisionPipeline(encode, make_cache())
    items = [Item(feature(seed, 2), Span(2 * seed, 2)) for seed in range(2)]
    assert embed(pipeline, [Chunk(items, 0, 4)], 4) == []
