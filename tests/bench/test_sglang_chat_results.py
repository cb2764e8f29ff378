"""The results and the figure of the bench `sglang_chat`, from given measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from vitcache.bench.claims import sglang_chat_figure
from vitcache.bench.claims.sglang_chat_results import SWAPPED, add_answers, add_limit, add_turns
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU
from vitcache.bench.sglang.chat_engines import HOST_TIER, NAMES, STOCK, VITCACHE

Row = tuple[str, float, float | None, bool | None]


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder("sglang_chat", tmp_path, torch.device(CPU))


def found(recorder: Recorder, metric: str) -> list[Row]:
    """The contender, value, target and verdict of each result with a metric."""
    fields = ("contender", "value", "target", "meets_target")
    return [
        cast(Row, tuple(row[name] for name in fields)) for row in recorder.rows if row["metric"] == metric
    ]


def turn(number: int, images: int, ttft_ms: float) -> dict[str, Any]:
    return {"turn": number, "ttft_ms": ttft_ms, "chunks": [{"images": images, "vit_ms": 2.0 * images}]}


@pytest.mark.parametrize("is_judged", [True, False])
def test_turns_judge_the_encodes_of_the_host_tier_if_an_image_fits(
    recorder: Recorder, *, is_judged: bool
) -> None:
    results = {
        STOCK: [turn(1, 1, 10.0), turn(2, 2, 20.0)],
        HOST_TIER: [turn(1, 1, 10.0), turn(2, 2, 5.0)],
    }
    add_turns(recorder, "8x8", results, is_judged=is_judged)
    verdicts = [(1, True), (1, False)] if is_judged else [(None, None)] * 2
    assert [each[2:] for each in found(recorder, "encoded") if each[0] == HOST_TIER] == verdicts
    last = recorder.rows[-1]
    assert (last["case"], last["metric"], last["value"]) == ("8x8 turn 2 chunk 1", "chunk_vit_ms", 4.0)
    ratios = [row["ratio"] for row in recorder.rows if row["metric"] == "ttft_ms"]
    assert ratios == [1, 1, 1, 0.25]


def test_limit_of_vitcache_must_be_that_of_stock(recorder: Recorder) -> None:
    def answered(*counts: int) -> list[dict[str, Any]]:
        chunks = [{"largest": 3}, {"largest": 2}]
        return [{"count": count, "chunks": chunks, "peak_bytes": count << 20} for count in counts]

    add_limit(recorder, "8x8", {STOCK: answered(1, 2), VITCACHE: answered(1, 2, 4), HOST_TIER: answered(1)})
    verdicts = [(STOCK, 2, None, None), (VITCACHE, 4, 2, True), (HOST_TIER, 1, 2, False)]
    assert found(recorder, "max_images") == verdicts
    assert {row["value"] for row in recorder.rows if row["metric"] == "peak_mib"} == {1}
    assert {row["case"] for row in recorder.rows if row["metric"] == "largest_encode"} == {"8x8, 1 images"}


def test_answers_must_be_those_of_stock_and_swapped_images_must_change_some(recorder: Recorder) -> None:
    def taken(*answers: int) -> dict[str, Any]:
        return {"answers": list(answers), "expected": [1, 2, 3, 4], "images": 4, "encodes": 1}

    results = {STOCK: taken(1, 2, 3, 4), VITCACHE: taken(1, 2, 3, 0), SWAPPED: taken(1, 2, 3, 4)}
    add_answers(recorder, "chats", results, 0.9)
    assert found(recorder, "accuracy") == [
        (STOCK, 1, 0.9, True),
        (VITCACHE, 0.75, 1, False),
        (SWAPPED, 1, 0.75, False),
    ]
    assert found(recorder, "different_answers") == [(VITCACHE, 1, 0, False), (SWAPPED, 0, 1, False)]
    assert {each[1] for each in found(recorder, "hit_share")} == {0.75}


def test_figure_names_the_images_of_a_turn_and_the_answers(recorder: Recorder) -> None:
    results = {name: [turn(1, 1, 10.0), turn(2, 1 + (name == STOCK), 20.0)] for name in NAMES}
    add_turns(recorder, "8x8", results, is_judged=True)
    assert sglang_chat_figure.title_of(recorder.rows).endswith("a turn encodes 1 image, with stock 1 to 2")
    assert "digits" not in sglang_chat_figure.note_of(recorder.rows)
    answers = {"answers": [1, 2], "expected": [1, 2], "images": 2, "encodes": 1}
    add_answers(recorder, "chats", dict.fromkeys((*NAMES, SWAPPED), answers), 0.9)
    assert sglang_chat_figure.note_of(recorder.rows).endswith("0 of 2 answers differ from stock's.")
