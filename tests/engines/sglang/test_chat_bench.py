"""`python -m vitcache bench --bench sglang_chat` with its smoke case: all parts, with two engines."""

from __future__ import annotations

from typing import Any

import pytest
from engine_runner.bench import run_smoke_cases

from vitcache.bench.claims.bench_sglang_chat import CASES


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of the bench. An engine whose tokens differ from stock's would have none."""
    return run_smoke_cases("sglang_chat", tmp_path_factory.mktemp("bench"))[0]


def values(rows: list[dict[str, Any]], metric: str) -> list[tuple[str, float]]:
    return [(row["contender"], row["value"]) for row in rows if row["metric"] == metric]


def test_engines_encode_each_image_once_in_a_chat_whose_turns_repeat_it(rows: list[dict[str, Any]]) -> None:
    [case] = CASES["smoke"]
    [chat] = case.chats
    assert values(rows, "encoded") == [(name, 1) for _ in range(chat.turns) for name in case.contenders]
    assert all(value > 0 for _, value in values(rows, "ttft_ms"))
    # The prompt has three chunks, and the new image is in the second one.
    times = [value > 0 for _, value in values(rows, "chunk_vit_ms")]
    assert times == [*2 * [False], *2 * [True], *2 * [False]]


def test_engines_answer_questions_alike_also_with_demoted_rows(rows: list[dict[str, Any]]) -> None:
    """The reader has one step of training: swapped images are checked by the full case."""
    different = dict(values(rows, "different_answers"))
    assert different.keys() == {"vitcache, host tier", "swapped"}
    assert different["vitcache, host tier"] == 0
    hits = dict(values(rows, "hit_share"))
    assert hits["stock"] == hits["vitcache, host tier"] > 0.5


def test_limit_of_images_is_the_largest_answered_request(rows: list[dict[str, Any]]) -> None:
    [case] = CASES["smoke"]
    assert case.limit is not None
    assert values(rows, "max_images") == [(name, case.limit.most) for name in case.contenders]
    assert all(value > 0 for _, value in values(rows, "largest_encode"))
