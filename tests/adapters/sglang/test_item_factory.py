"""`ItemFactory`: an item of SGLang as an `Item`, and items whose rows cannot exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sglang_fakes.model import HIDDEN, Model
from sglang_fakes.requests import DataItem, Inputs, Modality, feature, image
from sglang_fakes.scene import Scene, Window

from vitcache.adapters.sglang import item_factory
from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.item_factory import ItemFactory
from vitcache.adapters.sglang.tenant import NO_TENANT
from vitcache.pipeline.items import Item
from vitcache.placement.spans import Span


def factory(**values: Any) -> ItemFactory:
    return ItemFactory(
        **{
            "row_width": lambda modality: HIDDEN,
            "embedder": lambda modality: None,
            "device": torch.device("cpu"),
            "dtype": torch.float32,
            "trust_engine_hash": False,
            "counts": Counts(),
        }
        | values
    )


def make(source: DataItem, rows: int = 3, **values: Any) -> Item:
    return factory(**values).make(source, [Span(2, rows)], NO_TENANT, None)[0]


def test_item_has_the_source_as_its_context_and_the_width_of_its_modality() -> None:
    source = image(1, (2, 4))
    widths = {Modality.IMAGE: 12}
    made = make(source, row_width=widths.__getitem__)
    assert made.context is source
    assert (made.num_rows, made.row_width, made.spans) == (3, 12, (Span(2, 3),))
    assert made.feature() is source.feature


def test_feature_is_that_which_the_source_has_now() -> None:
    source = image(1, (2, 4))
    made = make(source)
    source.feature = torch.zeros(1)
    assert made.feature() is source.feature
    source.feature = None
    assert made.feature() is None


@pytest.mark.parametrize(
    ("value", "is_moved"),
    [
        *((torch.zeros(2, 3), True), (torch.zeros(0), True)),
        *((np.zeros((2, 3)), False), ([torch.zeros(2, 3)], False), (None, False), (object(), False)),
    ],
    ids=["tensor", "empty", "array", "list", "none", "object"],
)
def test_tensors_are_moved_and_other_features_are_left_to_the_encoder(value: Any, is_moved: bool) -> None:
    assert make(image(1, (2, 4), feature=value)).move_feature is is_moved


def test_feature_that_the_encoder_moves_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    monkeypatch.setattr(item_factory, "encoder_moves", lambda embedder: embedder == model.get_image_feature)
    assert not make(image(1, (2, 4)), embedder=lambda _: model.get_image_feature).move_feature
    assert make(image(1, (2, 4)), embedder=lambda _: model.get_video_feature).move_feature


def test_known_key_is_not_computed_again() -> None:
    counts = Counts()
    made = factory(counts=counts)
    source = image(1, (2, 4), feature=object())
    first, key = made.make(source, [Span(2, 3)], NO_TENANT, None)
    second, again = made.make(source, [Span(2, 3)], NO_TENANT, key)
    assert first.key == second.key
    assert again is key
    assert counts.unshared == 1


ROWS = {
    "tensor": feature(1, 3).repeat(1, 2)[:, :HIDDEN],
    "three dimensions": torch.ones(1, 3, HIDDEN),
    "more rows": torch.ones(5, HIDDEN),
    "list of one": [torch.ones(3, HIDDEN)],
    "tuple of one": (torch.ones(1, 3, HIDDEN),),
    "array": np.ones((3, HIDDEN), np.float32),
    "strided array": np.ones((6, HIDDEN), np.float32)[::-2],
    "float16": torch.ones(3, HIDDEN, dtype=torch.float16),
    "float64": np.full((3, HIDDEN), 1 / 3),
    "integers": torch.arange(3 * HIDDEN).reshape(3, HIDDEN),
    "gradient": torch.ones(3, HIDDEN, requires_grad=True),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_precomputed_rows_are_placed(monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    source = image(1, (2, 4), feature=None, precomputed_embeddings=rows)
    flat = rows[0] if isinstance(rows, list | tuple) else rows
    truth = torch.from_numpy(flat.copy()) if isinstance(flat, np.ndarray) else flat.detach()
    scene = Scene(monkeypatch)
    for _ in range(2):
        scene.step(Window(Inputs([source]), 0, 6), truth={id(source): truth.reshape(-1, HIDDEN).float()})
    assert scene.service.stats().errors == 0
    assert scene.model.calls == []


WRONG_ROWS = {
    "few rows": torch.ones(2, HIDDEN),
    "no rows": torch.ones(0, HIDDEN),
    "narrow": torch.ones(3, HIDDEN - 1),
    "wide": torch.ones(3, HIDDEN * 2),
    "one dimension": torch.ones(HIDDEN),
    "no dimension": torch.tensor(1.0),
    "array without dimension": np.array(1.0),
    "list of two": [torch.ones(3, HIDDEN)] * 2,
    "empty list": [],
    "text": "rows",
    "object array": np.array([[None] * HIDDEN] * 3),
    "sparse": torch.ones(3, HIDDEN).to_sparse(),
    "nested": torch.nested.nested_tensor([torch.ones(3, HIDDEN)], layout=torch.jagged),
    "meta": torch.ones(3, HIDDEN, device="meta"),
}


@pytest.mark.parametrize("rows", WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_wrong_precomputed_rows_fail_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rows: Any
) -> None:
    wrong = image(1, (2, 4), feature=None, precomputed_embeddings=rows)
    right = image(2, (1, 3))
    scene = Scene(monkeypatch)
    scene.step(Window(Inputs([wrong]), 0, 6), Window(Inputs([right]), 0, 6), failed=[wrong])
    assert scene.service.stats().errors == 1
    [message] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "item 0 of request id-0" in message


def deep(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"a": made}
    return made


@pytest.mark.parametrize(
    "values", [{"grid": deep(100_000)}, {"identity": object()}], ids=["deep data", "identity of a wrong type"]
)
def test_item_without_a_key_fails_alone(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> None:
    wrong, right = image(1, (2, 4), **values), image(2, (1, 3))
    scene = Scene(monkeypatch)
    for _ in range(2):
        scene.step(Window(Inputs([wrong]), 0, 6), Window(Inputs([right]), 0, 6), failed=[wrong])
    assert scene.service.stats().errors == 2
    assert scene.model.num_encoded == 1


def test_data_that_contain_themselves_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loop: list[Any] = []
    loop.append(loop)
    wrong, right = image(1, (2, 4), grid=loop), image(2, (1, 3))
    Scene(monkeypatch).step(Window(Inputs([wrong]), 0, 6), Window(Inputs([right]), 0, 6), failed=[wrong])


@pytest.mark.parametrize("number", [-1, 2**64, 1.5, "7", np.int64(7)], ids=repr)
def test_trusted_hash_that_is_not_64_bits_fails_alone(monkeypatch: pytest.MonkeyPatch, number: Any) -> None:
    wrong, right = image(1, (2, 4), hash=number), image(2, (1, 3), hash=1)
    scene = Scene(monkeypatch, trust_engine_hash=True)
    scene.step(Window(Inputs([wrong, right]), 0, 1), failed=[wrong])
    scene.step(Window(Inputs([wrong]), 0, 6), Window(Inputs([right]), 0, 6), failed=[wrong])


def test_failure_keeps_no_frames() -> None:
    source = image(1, (2, 4), feature=None, precomputed_embeddings="rows")
    made = make(source)
    with pytest.raises(TypeError, match="precomputed_embeddings") as found:
        made.feature()
    assert len(found.traceback) == 2
