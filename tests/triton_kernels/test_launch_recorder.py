"""The recorder of launches: small counts launch the variants of large ones, and nothing else is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from deepstack_forms import make_levels
from placement_cases import make_rows, poisoned, same_bits

pytest.importorskip("triton")
pytest.importorskip("transformers")

from bench_launches import IN_ENGINES, gpu_cases, shrink, shrink_model, small_models
from launch_recorder import KERNELS, PLACEMENTS, LaunchRecorder

from vitcache import embed_tokens, scatter_embeddings
from vitcache.bench.run import BENCHES
from vitcache.demo.model import SIZES
from vitcache.placement import dispatch
from vitcache.triton_kernels.launch import Variant

pytestmark = pytest.mark.triton

KEPT = ("hidden", "levels", "blocks", "warps", "size", "model", "keeps_kv")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> LaunchRecorder:
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "launch", kernel.launch)
    for name in ("uses_kernels", *PLACEMENTS):
        monkeypatch.setattr(dispatch, name, getattr(dispatch, name))
    made = LaunchRecorder(lambda: "a test")
    made.install()
    return made


def place(num_items: int, num_rows: int, vocabulary: int, form: str) -> None:
    hidden, tokens = 16, num_items * (num_rows + 1) + 1
    width = 3 * hidden
    rows = [make_rows(num_rows, width, torch.float32) for _ in range(num_items)]
    starts = [item * (num_rows + 1) for item in range(num_items)]
    out, ids = poisoned(tokens, hidden, dtype=torch.bfloat16), torch.zeros(tokens, dtype=torch.int64)
    for item, start in zip(rows, starts, strict=True):
        assert item.shape == (num_rows, width)
        assert start < tokens
    levels: dict[str, Any] = make_levels(form, (tokens,), hidden, 2, num_items * num_rows, torch.bfloat16)
    scatter_embeddings(out, rows, starts, **levels)
    assert same_bits(out[:num_rows], rows[0][:, :hidden].bfloat16())
    weight = make_rows(vocabulary, hidden, torch.bfloat16)
    assert same_bits(embed_tokens(ids, weight, rows, starts, **levels)[-1:], weight[:1])


def recorded(recorder: LaunchRecorder, *sizes: int, form: str) -> set[Variant]:
    recorder.labels.clear()
    place(*sizes, form)
    return set(recorder.labels)


@pytest.mark.parametrize("form", ["levels", "list", "packed"])
def test_counts_do_not_change_the_variants_of_a_call(recorder: LaunchRecorder, form: str) -> None:
    small = recorded(recorder, 1, 2, 3, form=form)
    assert len(small) == 2
    assert recorded(recorder, 9, 88, 512, form=form) == small


@pytest.mark.parametrize("name", sorted(BENCHES.keys() - IN_ENGINES))
def test_shrunk_cases_keep_everything_that_a_variant_depends_on(name: str) -> None:
    if getattr(BENCHES[name], "DEVICE", torch.device("cuda")).type == "cpu":
        return
    for case in BENCHES[name].CASES["full"]:
        small = shrink(case)
        assert type(small) is type(case)
        for field in KEPT:
            assert getattr(small, field, None) == getattr(case, field, None)


def test_cases_that_shrink_to_one_case_run_once() -> None:
    cases = [(bench.NAME, name) for bench, name, _ in gpu_cases()]
    assert ("placement", "9x880") in cases
    assert ("placement", "32x880") not in cases
    assert {name for name, _ in cases} >= {"blocks", "limit", "placement", "scatter"}


def test_case_with_an_unknown_field_is_refused() -> None:
    @dataclass(frozen=True)
    class Case:
        hidden: int
        stride: int

    with pytest.raises(TypeError, match="Case has a field stride: add it to COUNTS, REPLACED or KEPT"):
        shrink(Case(8, 8))


def test_small_models_keep_width_levels_and_dtype_of_their_rows() -> None:
    before = dict(SIZES)
    with small_models():
        for name, size in SIZES.items():
            assert size == shrink_model(before[name])
            for part in ("hidden_size", "head_dim"):
                assert size.text[part] == before[name].text[part]
            assert size.vision["out_hidden_size"] == before[name].text["hidden_size"]
            levels = (len(model.vision["deepstack_visual_indexes"]) for model in (size, before[name]))
            assert len(set(levels)) == 1
            assert size.dtype == before[name].dtype
    assert before == SIZES
