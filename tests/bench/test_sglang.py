"""The parts of the bench `sglang` without SGLang: cases, targets, the scene, and refused contenders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from vitcache.bench.claims import bench_sglang, sglang_figure
from vitcache.bench.claims.bench_sglang import DeviceCase, HostCase, add, check, counted
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU, GPU, cases_for
from vitcache.bench.harness.timing import Sample
from vitcache.bench.sglang.models import LanguageModel, VisionModel
from vitcache.bench.sglang.scene import GAP, Scene
from vitcache.bench.sglang.sides import STOCK, VITCACHE, Side
from vitcache.bench.sglang.turns import Kind

DEVICE = torch.device(CPU)


def make_scene(levels: int = 0) -> Scene:
    return Scene(2, rows=3, hidden=4, levels=levels, device=DEVICE)


def test_full_cases_judge_only_32_images_of_a_known_request() -> None:
    full = cases_for(bench_sglang.CASES["full"], "full", CPU)
    judged = {case.name: case.target_us for case in full if isinstance(case, HostCase) and case.target_us}
    assert judged == {"32 images, same request": 350.0, "32 images, same request, 3 levels": 350.0}
    assert {case.kind for case in full if isinstance(case, HostCase)} == set(Kind)


def test_names_of_cases_differ() -> None:
    for cases in bench_sglang.CASES.values():
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
    assert HostCase(1, Kind.CONTENT).name == "1 image, new request, keys by content"


def test_cases_on_a_gpu_have_rows_of_a_real_model() -> None:
    found = cases_for(bench_sglang.CASES["full"], "full", GPU)
    assert found == [DeviceCase(images, 880, 4096, levels) for levels in (0, 3) for images in (1, 8, 32)]


@pytest.mark.parametrize("levels", [0, 2])
def test_truth_has_rows_of_images_at_their_tokens_and_zero_deepstack_at_text(levels: int) -> None:
    scene = make_scene(levels)
    embeds, deepstack = scene.truth(scene.features)
    text = [0, *range(4, 4 + GAP), *range(11, 11 + GAP)]
    assert scene.num_tokens == len(embeds) == 15
    assert torch.equal(embeds[text], scene.table[text])
    assert not deepstack[text].any()
    rows = torch.cat([embeds, deepstack], dim=1)
    assert torch.equal(rows[1:4], scene.features[0])
    assert torch.equal(rows[8:11], scene.features[1])


def test_models_return_features_as_rows_and_keep_the_inputs_of_the_language_model() -> None:
    scene = make_scene(levels=1)
    model, language_model = VisionModel(scene), LanguageModel(scene)
    rows = model.get_image_feature([SimpleNamespace(feature=feature) for feature in scene.features])
    text, levels = model.separate_deepstack_embeds(rows)
    assert (model.num_encoded, model.deepstack_visual_indexes) == (2, [0])
    assert torch.equal(torch.cat([text, levels], dim=1), torch.cat(scene.features))
    assert torch.equal(language_model.get_input_embeddings()(torch.tensor([5])), scene.table[5:6])
    assert language_model(None, None, text, input_deepstack_embeds=levels) is text
    assert (language_model.input_embeds is text, language_model.deepstack is levels) == (True, True)


def fake_side(num_encoded: int = 0, *, is_right: bool = True) -> Side:
    model = SimpleNamespace(num_encoded=num_encoded)
    return cast(Side, SimpleNamespace(num_steps=0, model=model, is_right=lambda: is_right))


def test_side_with_other_rows_than_a_loop_over_images_gets_no_number() -> None:
    check(STOCK, fake_side())
    with pytest.raises(
        RuntimeError, match="stock built other rows than a loop over images: it gets no number"
    ):
        check(STOCK, fake_side(is_right=False))


@pytest.mark.parametrize(("kind", "encoded"), [(Kind.SAME, 1), (Kind.ONE_NEW, 0), (Kind.CONTENT, 3)])
def test_side_that_encodes_another_number_of_images_gets_no_number(kind: Kind, encoded: int) -> None:
    side: Any = fake_side(7)
    counting = counted({STOCK: side}, kind)
    counting.__enter__()
    side.num_steps += 1
    side.model.num_encoded += encoded
    with pytest.raises(RuntimeError, match=f"stock encoded {encoded} images in 1 steps: it gets no number"):
        counting.__exit__(None, None, None)


def test_step_of_vitcache_that_sglang_computed_itself_gets_no_number() -> None:
    stock: Any = fake_side()
    vitcache: Any = fake_side()
    counting = counted({STOCK: stock, VITCACHE: vitcache}, Kind.SAME)
    counting.__enter__()
    stock.num_steps += 1
    vitcache.num_steps += 1
    with pytest.raises(RuntimeError, match="vitcache placed 0 of 1 steps: it gets no number"):
        counting.__exit__(None, None, None)


def results(folder: Path, cases: list[HostCase], vitcache_us: float) -> list[dict[str, Any]]:
    recorder = Recorder("sglang", folder, DEVICE)
    for case in cases:
        samples = {STOCK: Sample.of([500.0]), VITCACHE: Sample.of([vitcache_us])}
        add(recorder, case.name, "host_us", samples, case.target_us)
    return recorder.rows


def test_add_gives_the_ratio_to_stock_and_judges_vitcache_alone(tmp_path: Path) -> None:
    stock, vitcache = results(tmp_path, [HostCase(32)], 400.0)
    assert (stock["ratio"], stock["target"], stock["meets_target"]) == (1.0, None, None)
    assert (vitcache["ratio"], vitcache["ratio_to"]) == (0.8, STOCK)
    assert (vitcache["target"], vitcache["meets_target"]) == (350.0, False)


def test_figure_has_a_panel_of_known_and_one_of_new_requests_and_names_the_claim(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = results(tmp_path, [HostCase(32), HostCase(8, Kind.CONTENT)], 100.0)
    figure = sglang_figure.draw(rows)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["the same request in each step", "a new request in each step"]
    words = " ".join(figure.get_suptitle().split())
    assert "with 32 known images it takes 100 us: within the target" in words
    missed = sglang_figure.draw(results(tmp_path, [HostCase(32)], 400.0))
    assert "a target is missed" in " ".join(missed.get_suptitle().split())
