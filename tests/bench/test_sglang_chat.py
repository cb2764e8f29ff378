"""The parts of the bench `sglang_chat` without SGLang: cases, options, prompts, steps and meter."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from vitcache.bench.chats import digits
from vitcache.bench.claims import bench_sglang_chat
from vitcache.bench.claims.bench_sglang_chat import CASES, SIZES, check
from vitcache.bench.claims.sglang_chat_cases import Chat, ChatCase
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU, GPU, cases_for
from vitcache.bench.sglang import meter
from vitcache.bench.sglang.chat_engine import ChatEngine
from vitcache.bench.sglang.chat_engines import (
    HOST_TIER,
    METER,
    MODELS,
    NAMES,
    STOCK,
    VITCACHE,
    EngineOptions,
)
from vitcache.bench.sglang.chat_models import interleave_positions, size_of
from vitcache.bench.sglang.chat_start import METERS
from vitcache.bench.sglang.chat_steps import IMAGE, one_each, prompt, take_limit, take_turns
from vitcache.bench.sglang.plug_ins import write_package

DEVICE = torch.device(CPU)
OPTIONS = EngineOptions(
    HOST_TIER, "tiny", chunk_tokens=8, num_tokens=64, cache_mb=3, device_bytes=None, host_bytes=5
)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder("sglang_chat", tmp_path, DEVICE)


def test_full_cases_have_the_sizes_of_the_tables_on_the_cpu_and_on_a_gpu() -> None:
    for device_type, model in ((CPU, "tiny"), (GPU, "8b")):
        chat, reader = cases_for(CASES["full"], "full", device_type)
        assert (chat.model, reader.model) == (model, "reader")
        assert [(each.width, each.height) for each in chat.chats] == list(SIZES)
        assert chat.limit is not None
        assert reader.questions is not None


@pytest.mark.parametrize("name", sorted(MODELS))
def test_row_bytes_of_a_model_follow_from_its_shape(name: str) -> None:
    size, model = size_of(name), MODELS[name]
    levels = len(size.vision["deepstack_visual_indexes"])
    assert model.row_bytes == size.text["hidden_size"] * (1 + levels) * size.dtype.itemsize
    assert model.row_side == 2 * size.patch_size


def test_cache_of_the_tiny_model_contains_as_many_images_as_that_of_the_8b_model() -> None:
    tiny, large = (cases_for(CASES["full"], "full", device_type)[0] for device_type in (CPU, GPU))
    held = [
        [(case.cache_mb << 20) // MODELS[case.model].image_bytes(*size) for size in SIZES]
        for case in (tiny, large)
    ]
    assert held == [[3, 1, 0], [3, 1, 0]]
    assert [tiny.contains(chat) for chat in tiny.chats] == [True, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_options_load_the_plug_in_of_vitcache_except_for_stock(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    options = EngineOptions(**{**vars(OPTIONS), "contender": name})
    variables = options.variables(tmp_path, CPU)
    assert variables["SGLANG_PLUGINS"] == (METER if name == STOCK else f"vitcache,{METER}")
    assert variables["SGLANG_VLM_CACHE_SIZE_MB"] == "3"
    assert "VITCACHE_DISABLE" not in variables
    given = variables.get("VITCACHE_SGLANG_OPTIONS")
    assert given == (json.dumps({"host_bytes": 5}) if name == HOST_TIER else None)


def test_options_of_a_gpu_leave_kernels_to_sglang_unless_the_model_is_the_reader() -> None:
    large, reader = (
        EngineOptions(**{**vars(OPTIONS), "model": name}).arguments(GPU) for name in ("8b", "reader")
    )
    assert large["load_format"] == "dummy"
    assert not {"device", "attention_backend", "disable_cuda_graph"} & large.keys()
    assert (reader["dtype"], reader["attention_backend"]) == ("float32", "torch_native")
    assert OPTIONS.arguments(CPU)["device"] == CPU


def test_prompt_has_one_token_for_each_image() -> None:
    assert [prompt(count).count(IMAGE) for count in (1, 3)] == [1, 3]
    assert one_each([97, IMAGE, IMAGE, 98, IMAGE, IMAGE, 99]) == [97, IMAGE, 98, IMAGE, 99]


def test_digits_of_the_copied_file_are_those_of_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = digits.load_digits()
    monkeypatch.setattr(digits, "COPY", Path(datasets.__file__).parent / "data/digits.csv.gz")
    copied, copied_labels = digits.load_digits()
    assert (pixels == copied).all()
    assert (pixels.shape, labels) == ((1797, 8, 8), copied_labels)


def test_config_of_a_model_gets_the_option_of_interleaved_positions(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"text_config": {"rope_parameters": {"rope_theta": 1.0}}}))
    interleave_positions(path)
    rope = json.loads(path.read_text())["text_config"]["rope_parameters"]
    assert rope == {"rope_theta": 1.0, "mrope_interleaved": True}


def test_written_plug_in_is_an_entry_point_that_exists(tmp_path: Path) -> None:
    write_package(tmp_path, METER, METERS)
    [package] = distributions(path=[str(tmp_path)])
    [point] = package.entry_points
    assert (point.group, point.name, point.load()) == ("sglang.srt.plugins", METER, meter.register)


def test_meter_writes_the_images_and_the_rows_of_each_chunk(tmp_path: Path) -> None:
    model = SimpleNamespace(get_image_feature=lambda items: torch.zeros(3 * len(items), 4))
    runner = SimpleNamespace(device=CPU, model=model)
    scheduler = SimpleNamespace(
        tp_worker=SimpleNamespace(model_runner=runner),
        run_batch=lambda batch: [model.get_image_feature([None] * count) for count in batch.calls],
    )
    path = tmp_path / "measured.json"
    with pytest.MonkeyPatch.context() as patch:
        vision = SimpleNamespace(VisionSdpaAttention=type("VisionSdpaAttention", (), {}))
        patch.setitem(sys.modules, meter.ATTENTION, cast(Any, vision))
        measured = meter.Meter(scheduler)
        for calls, is_extend in (([2, 1], True), ([], False), ([], True)):
            mode = SimpleNamespace(is_extend=lambda is_extend=is_extend: is_extend)
            scheduler.run_batch(SimpleNamespace(forward_mode=mode, calls=calls))
        measured.take(path)
    first, second = json.loads(path.read_text())["chunks"]
    assert (first["images"], first["largest"]) == (3, 6)
    assert first["vit_ms"] > 0
    assert second == {"vit_ms": 0, "images": 0, "largest": 0}


def test_attention_by_image_equals_attention_with_a_mask() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(7, 2, 4) for _ in range(3))
    ends = torch.tensor([0, 3, 7])
    mask = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).bool()
    scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
    truth = torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v)
    built = meter.attend_by_image(SimpleNamespace(scale=0.3), q, k, v, bsz=1, cu_seqlens=ends)
    torch.testing.assert_close(built, truth)


class FakeEngine:
    """Answers with the number of images; more than `most` images are errors."""

    def __init__(self, most: int = 100) -> None:
        self._most, self.asked = most, [0]

    def ask(self, ids: list[int], images: list[Any]) -> dict[str, Any]:
        assert ids.count(IMAGE) == len(images)
        self.asked.append(len(images))
        return {"images": len(images), "errors": int(len(images) > self._most)}


def last_of(step: Callable[..., Any], engine: FakeEngine, **arguments: Any) -> Any:
    *_, last = step(cast(ChatEngine, engine), **arguments)
    return last


def test_turns_measure_each_pass_but_not_the_warm_up() -> None:
    engine = FakeEngine()
    turns = last_of(take_turns, engine, size=(4, 4), turns=3, passes=2, warm_up=1)
    assert [each["turn"] for each in turns] == [1, 2, 3, 1, 2, 3]
    assert engine.asked == [0, 1, 1, 2, 3, 1, 2, 3]


def test_limit_ends_before_the_first_request_with_an_error() -> None:
    engine = FakeEngine(most=5)
    answered = last_of(take_limit, engine, size=(4, 4), most=64, added_bytes=None)
    assert [each["count"] for each in answered] == [1, 2, 4]
    assert engine.asked == [0, 2, 1, 2, 4, 8]  # two images before the limit


def test_engine_with_other_tokens_or_without_vitcache_gets_no_number() -> None:
    stock = [{"tokens": [5], "steps": 0}]
    check(STOCK, stock, stock, "tiny")
    check(VITCACHE, [{"tokens": [5], "steps": 2}], stock, "tiny")
    with pytest.raises(RuntimeError, match="vitcache answers with the tokens"):
        check(VITCACHE, [{"tokens": [6], "steps": 2}], stock, "tiny")
    check(VITCACHE, [{"tokens": [6], "steps": 2}], stock, "8b")  # its weights mean nothing
    with pytest.raises(RuntimeError, match="vitcache has placed no step"):
        check(VITCACHE, stock, stock, "8b")


def test_case_fails_if_the_host_tier_gave_no_rows_of_the_cards(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn.datasets")
    taken = {"answers": [1], "expected": [1], "images": 2, "encodes": 1, "demotions": 0}
    monkeypatch.setattr(
        bench_sglang_chat, "run_engine", lambda *_, **__: {"answers": taken, "swapped": taken}
    )
    [case] = [case for case in CASES["full"] if case.model == "reader"]
    timer = cast(Any, SimpleNamespace(device=DEVICE))
    with pytest.raises(RuntimeError, match="has demoted no card"):
        list(bench_sglang_chat.run_case(case, recorder, timer))


def test_names_of_cases_differ_and_steps_end_with_the_limit() -> None:
    for cases in CASES.values():
        assert len({case.name for case in cases}) == len(cases)
    [smoke] = CASES["smoke"]
    assert [key for key, _, _ in smoke.steps(HOST_TIER, CPU)] == ["16x16", "answers", "swapped", "limit"]
    assert [key for key, _, _ in smoke.steps(STOCK, CPU)] == ["16x16", "answers", "limit"]
    case = ChatCase("one", "8b", 8, None, 100, 0, chats=(Chat(64, 64, turns=5, passes=1),))
    [(_, _, on_gpu)], [(_, _, on_cpu)] = case.steps(STOCK, GPU), case.steps(STOCK, CPU)
    assert (on_gpu["warm_up"], on_cpu["warm_up"]) == (5, 1)
    assert prod(on_gpu["size"]) == 64 * 64
