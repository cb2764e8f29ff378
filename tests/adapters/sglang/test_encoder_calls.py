"""`EncoderCalls`: the encoders of a model, called by modality, and the forms of their results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.model import Model, rows_of
from sglang_fakes.requests import DataItem, Inputs, Modality, image
from sglang_fakes.scene import Scene, Window
from torch import Tensor

from vitcache.adapters.sglang import encoder_calls, model_step
from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.encoder_calls import EncoderCalls, PrunedVideo
from vitcache.adapters.sglang.engine_modules import RUNTIME_CONTEXT
from vitcache.pipeline.items import Item
from vitcache.placement.spans import Span

Rows = list[Tensor]


def items_of(*modalities: Modality, rows: int = 2) -> list[Item]:
    made = []
    for number, modality in enumerate(modalities):
        source = image(number, (0, rows - 1), modality=modality)
        made.append(Item(source.feature, Span(0, rows), context=source))
    return made


def calls_of(model: Any, functions: Any = None) -> tuple[EncoderCalls, Counts]:
    counts = Counts()
    calls = EncoderCalls(counts, torch.float32)
    calls.use(model, functions)
    return calls, counts


def encode(calls: EncoderCalls, items: list[Item]) -> Any:
    return calls.encode([item.feature for item in items], items)


def truth(items: list[Item]) -> Rows:
    return [rows_of(item.context.modality, item.context.feature) for item in items]


MIXED = (Modality.IMAGE, Modality.AUDIO, Modality.IMAGE, Modality.VIDEO, Modality.AUDIO)
FORMS: dict[str, Callable[[Rows], Any]] = {
    "list": list,
    "tuple": tuple,
    "one tensor": torch.cat,
    "three dimensions": lambda rows: torch.stack(rows),
    "four dimensions": lambda rows: torch.stack(rows)[:, None],
    "list of three dimensions": lambda rows: [part[None] for part in rows],
    "float64": lambda rows: torch.cat(rows).double(),
    "list in float64": lambda rows: [part.double() for part in rows],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("modalities", [MIXED[:1], MIXED], ids=["one modality", "mixed"])
def test_each_form_of_a_result_has_the_rows_of_each_item(form: Any, modalities: tuple[Modality, ...]) -> None:
    calls, counts = calls_of(model := Model(form=form))
    items = items_of(*modalities)
    found = encode(calls, items)
    parts = found.split([item.num_rows for item in items]) if isinstance(found, Tensor) else found
    assert len(parts) == len(items)
    assert all(map(torch.equal, parts, truth(items)))
    called = [{item.modality for item in call} for call in model.calls]
    assert called == [{each} for each in dict.fromkeys(modalities)]
    assert counts.encodes == len(items)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_form_is_placed(monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    scene = Scene(monkeypatch, Model(form=form))
    items = [image(number, (5 * number, 5 * number + 1)) for number in range(len(MIXED))]
    for item, modality in zip(items, MIXED, strict=True):
        item.modality = modality
    inputs = Inputs(items)
    for _ in range(2):
        scene.step(Window(inputs, 0, 27))
    assert scene.service.stats().encodes == len(MIXED)
    assert scene.service.stats().errors == 0


WRONG_FORMS: dict[str, Callable[[Rows], Any]] = {
    "none": lambda rows: None,
    "number": lambda rows: 3,
    "text": lambda rows: "rows",
    "array": lambda rows: torch.cat(rows).numpy(),
    "list of arrays": lambda rows: [part.numpy() for part in rows],
    "dict": lambda rows: dict(enumerate(rows)),
    "empty list": lambda rows: [],
    "list that is too long": lambda rows: [*rows, rows[0]],
    "list with none": lambda rows: [None] * len(rows),
    "no dimension": lambda rows: torch.tensor(1.0),
    "one dimension": lambda rows: torch.cat(rows).reshape(-1),
    "too few rows": lambda rows: torch.cat(rows)[1:],
    "too many rows": lambda rows: torch.cat([*rows, rows[0]]),
    "no rows": lambda rows: torch.cat(rows)[:0],
    "narrow": lambda rows: torch.cat(rows)[:, 1:],
    "wide": lambda rows: torch.cat(rows).repeat(1, 2),
    "integers": lambda rows: torch.cat(rows).long(),
    "sparse": lambda rows: torch.cat(rows).to_sparse(),
    "meta": lambda rows: torch.cat(rows).to("meta"),
}


@pytest.mark.parametrize("form", WRONG_FORMS.values(), ids=WRONG_FORMS)
def test_wrong_result_makes_rows_zero_and_spares_other_modalities(
    monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    """The micro-batch has items of two modalities. The encoder of images alone is wrong."""
    model = Model()
    model.get_image_feature = lambda items: form(model.encode(items))  # type: ignore[method-assign]
    scene = Scene(monkeypatch, model)
    wrong = [image(1, (0, 2)), image(2, (4, 5))]
    right = [image(3, (7, 8), modality=Modality.AUDIO), image(4, (9, 11), modality=Modality.VIDEO)]
    window = Window(Inputs([wrong[0], right[0], wrong[1], right[1]]), 0, 14)
    scene.step(window, failed=wrong)
    assert scene.service.stats().errors == 2
    scene.model.get_image_feature = model.encode  # type: ignore[method-assign]
    scene.step(window)
    assert scene.service.stats().errors == 2


def test_rows_of_one_wrong_item_of_a_list_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, Model(form=lambda rows: [part[: min(len(part), 3)] for part in rows]))
    items = [image(1, (0, 2)), image(2, (4, 8)), image(3, (9, 9))]
    scene.step(Window(Inputs(items), 0, 10), failed=[items[1]])
    assert scene.service.stats().errors == 1


def test_encoder_that_raises_for_one_item_serves_the_other_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(items: list[DataItem]) -> Any:
        if any(item.offsets is bad.offsets for item in items):
            raise OSError("truncated image")
        return model.encode(items)

    model = Model()
    model.get_image_feature = refuse  # type: ignore[method-assign]
    scene = Scene(monkeypatch, model)
    bad, good = image(1, (0, 2)), image(2, (4, 8))
    scene.step(Window(Inputs([good]), 0, 10), Window(Inputs([bad]), 0, 3), failed=[bad])
    stats = scene.service.stats()
    assert (stats.errors, stats.encodes) == (1, 1)


@pytest.mark.parametrize("functions", [None, {}, {Modality.AUDIO: None}], ids=["none", "empty", "null"])
def test_model_without_an_encoder_is_an_error_of_its_items(functions: Any) -> None:
    calls, counts = calls_of(SimpleNamespace(), functions)
    with pytest.raises(ValueError, match="no encoder for items of modality AUDIO"):
        encode(calls, items_of(Modality.AUDIO))
    assert counts.encodes == 0


def test_no_model_at_all_is_an_error_of_its_items() -> None:
    calls, _ = calls_of(None)
    with pytest.raises(ValueError, match="no encoder"):
        encode(calls, items_of(Modality.IMAGE))


def test_function_of_a_modality_precedes_the_method() -> None:
    model, other = Model(), Model()
    calls, _ = calls_of(model, {Modality.IMAGE: other.encode})
    encode(calls, items_of(Modality.IMAGE, Modality.VIDEO))
    assert (other.num_encoded, model.num_encoded) == (1, 1)
    assert calls.embedder(Modality.IMAGE) == other.encode
    assert calls.embedder(Modality.VIDEO) == model.get_video_feature


@pytest.mark.parametrize("modalities", [MIXED[:1], MIXED], ids=["one modality", "mixed"])
def test_result_that_names_the_rows_of_frames_is_a_pruned_video(modalities: tuple[Modality, ...]) -> None:
    calls, _ = calls_of(Model(form=lambda rows: SimpleNamespace(num_tokens_per_frame=[1])))
    with pytest.raises(PrunedVideo, match="IMAGE"):
        encode(calls, items_of(*modalities))


def test_moved_feature_reaches_the_encoder_in_a_copy_of_the_item() -> None:
    calls, _ = calls_of(model := Model())
    [item] = items_of(Modality.IMAGE)
    item.context.grid = [1, 2, 3]
    kept, moved = item.context.feature, item.context.feature * 2
    calls.encode([moved], [item])
    [[seen]] = model.calls
    assert seen is not item.context
    assert seen.feature is moved
    assert seen.grid == [1, 2, 3]
    assert item.context.feature is kept


def test_feature_that_was_not_moved_reaches_the_encoder_with_the_item_itself() -> None:
    calls, _ = calls_of(model := Model())
    [item] = items_of(Modality.IMAGE)
    calls.encode([item.context.feature], [item])
    left = Item(item.context.feature, Span(0, 2), context=item.context, move_feature=False)
    calls.encode([object()], [left])
    assert [call[0] for call in model.calls] == [item.context, item.context]


def test_array_reaches_the_encoder_as_sglang_stores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    model = Model()
    model.get_image_feature = lambda items: seen.extend(items) or model.encode(items)  # type: ignore
    source = image(1, (0, 2))
    source.feature = source.feature.numpy()
    Scene(monkeypatch, model).step(Window(Inputs([source]), 0, 4))
    assert [item is source for item in seen] == [True]


@pytest.mark.parametrize(
    ("is_shared", "options", "wanted"),
    [(False, {}, [2, 2, 2, 1]), (True, {}, [6, 1]), (True, {"max_rows_per_encode": 12}, [3, 3, 1])],
    ids=["one rank a call", "three ranks share a call", "the operator's limit"],
)
def test_ranks_that_share_the_items_of_a_call_get_a_limit_each(
    monkeypatch: pytest.MonkeyPatch, is_shared: bool, options: dict[str, int], wanted: list[int]
) -> None:
    """With --mm-enable-dp-encoder: a call for one rank's limit would leave the other ranks idle."""
    context: Any = ModuleType(RUNTIME_CONTEXT)
    context.get_server_args = lambda: None
    context.get_mm = lambda: SimpleNamespace(mm_enable_dp_encoder=is_shared)
    context.get_parallel = lambda: SimpleNamespace(attn_tp_size=3, tp_rank=0, tp_size=6)
    monkeypatch.setitem(sys.modules, RUNTIME_CONTEXT, context)
    monkeypatch.setattr(model_step.Ranks, "of_scheduler", lambda: None)  # the other ranks do not run
    monkeypatch.setattr(encoder_calls, "MAX_ROWS_PER_ENCODE", 8)
    scene = Scene(monkeypatch, **options)
    scene.step(Window(Inputs([image(seed, (4 * seed, 4 * seed + 3)) for seed in range(7)]), 0, 28))
    assert list(map(len, scene.model.calls)) == wanted
