"""The bookkeeping of `prepare_mm_inputs` and `embed_mm_inputs`: with the plug-in it is that of SGLang."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_utils
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_disagg
from sglang_scene.language_model import HIDDEN, VOCABULARY, LanguageModel
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import Prompt, images, make_item
from sglang_scene.steps import make_batch
from sglang_scene.tower import DEEP, Tower
from sglang_scene.truth import step_rows

from vitcache.adapters.sglang import stats

Side = Callable[[], AbstractContextManager[None]]
BOTH = pytest.mark.parametrize("side", [stock, plugged])


def embed(ids: torch.Tensor, batch: Any, model: LanguageModel, tower: Tower) -> torch.Tensor:
    with torch.no_grad():
        return mm_utils.general_mm_embed_routine(ids, batch, model, tower, use_deepstack=tower.use_deepstack)


@BOTH
def test_static_buffer_gets_the_rows_and_the_batch_loses_its_inputs(side: Side) -> None:
    model, tower, windows = LanguageModel(), Tower(), [images(2).window()]
    ids, batch = make_batch(windows)
    buffer = batch.input_embeds
    with side():
        assert embed(ids, batch, model, tower) is buffer
    truth = step_rows(windows, model, tower)
    assert torch.equal(buffer, truth)
    assert batch.mm_inputs is None
    assert torch.equal(batch.mm_input_embeds, truth)


@BOTH
@pytest.mark.parametrize("is_eagle", [True, False])
def test_eagle_gets_a_copy_that_the_model_does_not_change(side: Side, is_eagle: bool) -> None:
    model, tower, windows = LanguageModel(), Tower(), [images(2).window()]
    ids, batch = make_batch(windows)
    batch.input_embeds = None
    batch.spec_algorithm = SimpleNamespace(is_eagle=lambda: is_eagle)
    with side():
        rows = embed(ids, batch, model, tower)
    assert (batch.mm_input_embeds is rows) is not is_eagle
    rows.fill_(float("nan"))
    assert torch.equal(batch.mm_input_embeds, step_rows(windows, model, tower)) is is_eagle


@BOTH
@pytest.mark.parametrize("padding", [0, 3])
def test_ids_of_placeholders_are_clamped_in_place(side: Side, padding: int) -> None:
    windows = [images(2).window(), Prompt(4).window()]
    ids, batch = make_batch(windows, padding)
    wanted = ids.clamp(0, VOCABULARY - 1)
    assert not torch.equal(ids, wanted)
    with side():
        embed(ids, batch, LanguageModel(), Tower())
    assert torch.equal(ids, wanted)


@BOTH
def test_rows_of_a_step_are_not_changed_by_a_later_step(side: Side) -> None:
    model, tower = LanguageModel(), Tower(2)
    with side():
        for windows in ([images(2).window()], [images(3).window(20)]):
            ids, batch = make_batch(windows)
            batch.input_embeds = None
            embed(ids, batch, model, tower).fill_(float("nan"))
            model.arguments["input_deepstack_embeds"].fill_(float("nan"))
        windows = [images(3).window()]
        ids, batch = make_batch(windows)
        rows = embed(ids, batch, model, tower)
    rows = torch.cat([rows, model.arguments["input_deepstack_embeds"]], dim=1)
    assert torch.equal(rows, step_rows(windows, model, tower))


@BOTH
@pytest.mark.parametrize("mode", [ForwardMode.DECODE, ForwardMode.TARGET_VERIFY])
def test_decode_and_verify_steps_only_look_up_text(side: Side, mode: ForwardMode) -> None:
    model, tower = LanguageModel(), Tower()
    ids, batch = make_batch([Prompt(5).window()])
    batch.forward_mode, batch.contains_mm_inputs = mode, lambda: True
    with side():
        assert torch.equal(embed(ids, batch, model, tower), model.text_rows(ids))
    assert not tower.batches


@BOTH
def test_later_pipeline_rank_embeds_nothing(side: Side) -> None:
    model, tower = LanguageModel(), Tower()
    model.pp_group = SimpleNamespace(is_first_rank=False)
    ids, batch = make_batch([images(1).window()])
    with side():
        assert embed(ids, batch, model, tower) is None
    assert not tower.batches


@BOTH
def test_text_batch_and_no_requests_give_the_results_of_sglang(side: Side) -> None:
    model = LanguageModel()
    with side():
        assert mm_utils.embed_mm_inputs(None, [], [], torch.arange(3), model.table) is None
        rows, info = mm_utils.embed_mm_inputs([], [], [], torch.arange(3), model.table)
    assert torch.equal(rows, model.text_rows(torch.arange(3)))
    assert info == {}


@BOTH
@pytest.mark.parametrize("levels", [0, 2])
def test_models_that_call_embed_themselves_get_rows_and_deepstack(side: Side, levels: int) -> None:
    model, tower = LanguageModel(), Tower(levels)
    windows = [images(2).window(3, 30), images(3).window(20)]
    ids, _ = make_batch(windows)
    with side(), torch.no_grad():
        rows, info = mm_utils.embed_mm_inputs(
            [window.prompt.inputs for window in windows],
            [window.start for window in windows],
            [window.length for window in windows],
            ids,
            model.table,
            tower,
            None,
            None,
            tower.use_deepstack,
        )
    assert set(info) == ({"input_deepstack_embeds"} if levels else set())
    joined = torch.cat([rows, *info.values()], dim=1)
    assert joined.shape == (len(ids), HIDDEN * (1 + levels))
    assert torch.equal(joined, step_rows(windows, model, tower))


@BOTH
def test_model_that_names_deepstack_without_levels_gets_no_columns(side: Side) -> None:
    model, tower = LanguageModel(), Tower()
    windows = [images(2).window(3, 30), Prompt(4).window()]
    ids, batch = make_batch(windows)
    with side(), torch.no_grad():
        mm_utils.general_mm_embed_routine(ids, batch, model, tower, use_deepstack=DEEP)
    assert model.arguments["input_deepstack_embeds"].shape == (len(ids), 0)
    assert torch.equal(batch.input_embeds, step_rows(windows, model, tower))


@pytest.mark.parametrize("levels", [0, 2])
def test_adaptive_dispatch_splits_the_batch_and_each_part_is_right(levels: int) -> None:
    model, results = LanguageModel(), []
    for side in (stock, plugged):
        tower = Tower(levels)
        item = make_item(0, (2, 5))
        item.precomputed_embeddings, item.feature = Tower(levels).rows(item), None
        audio = make_item(4, (1, 3), modality=Modality.AUDIO)
        windows = [
            *(Prompt(10, [item]).window(1), Prompt(5).window(), images(2).window(0, 30)),
            Prompt(8, [audio]).window(2),
        ]
        ids, batch = make_batch(windows)
        with side(), get_disagg().override(enable_adaptive_dispatch_to_encoder=True):
            rows = embed(ids, batch, model, tower)
            steps = stats().steps
        if levels:
            rows = torch.cat([rows, model.arguments["input_deepstack_embeds"]], dim=1)
        assert torch.equal(rows, step_rows(windows, model, tower))
        results.append(rows)
    assert torch.equal(*results)
    assert steps == 2  # of the plug-in, which SGLang calls for each part
