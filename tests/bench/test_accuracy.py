"""The accuracy bench at smoke size: all sides answer alike, and two swapped entries change answers."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import make_cache

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")

from vitcache.bench import plot, run
from vitcache.bench.chats.digits import HELD_OUT, NAMES, Card, deal, load_cards
from vitcache.bench.chats.reader import SIZE, build_reader, teach
from vitcache.bench.claims import bench_accuracy
from vitcache.bench.harness.record import Recorder
from vitcache.demo.model import build_processor

pytestmark = pytest.mark.transformers

CACHED = ("attach", "pipeline", "host tier")


def run_bench(directory: Path) -> tuple[int, list[dict[str, Any]]]:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    arguments = ["--bench", "accuracy", "--cases", "smoke", "--out", str(directory)]
    code = run.run(parser.parse_args(arguments))
    return code, [row for path in directory.glob("*.json") for row in json.loads(path.read_text())]


@pytest.fixture(scope="module")
def decks() -> tuple[list[Card], list[Card]]:
    return load_cards(build_processor(SIZE), 1)


def test_accuracy_bench_cached_sides_answer_as_stock_and_swap_changes_answers(tmp_path: Path) -> None:
    code, rows = run_bench(tmp_path)
    assert code == 0
    values = {(row["contender"], row["metric"]): row["value"] for row in rows}
    for side in CACHED:
        assert values[side, "accuracy"] == values["stock", "accuracy"]
        assert values[side, "different_answers"] == 0
        assert 0.5 < values[side, "hit_share"] < 1
    assert values["swapped", "different_answers"] > 0
    assert values["swapped", "hit_share"] == 1
    judged = {(row["contender"], row["meets_target"]) for row in rows if row["metric"] == "different_answers"}
    assert judged == {(side, True) for side in (*CACHED, "swapped")}
    pytest.importorskip("matplotlib")
    (path,) = tmp_path.glob("*.json")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")


def test_add_results_answers_unlike_the_stock_models_miss_the_targets(tmp_path: Path) -> None:
    (case,) = bench_accuracy.CASES["full"]
    recorder = Recorder("accuracy", tmp_path, torch.device("cpu"))
    results = {
        name: bench_accuracy.Result(answers, 0.5)
        for name, answers in {"stock": [1, 2, 0], "attach": [1, 0, 3], "swapped": [1, 2, 0]}.items()
    }
    bench_accuracy.add_results(case, recorder, results, [1, 2, 3])
    judged = {(row["contender"], row["metric"]): row["meets_target"] for row in recorder.rows}
    assert judged["stock", "accuracy"] is False
    assert judged["attach", "accuracy"] is True
    assert judged["attach", "different_answers"] is False
    assert judged["swapped", "accuracy"] is False
    assert judged["swapped", "different_answers"] is False


def test_accuracy_bench_missing_package_is_named_with_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, rows = run_bench(tmp_path)
    assert (code, rows) == (1, [])
    assert "not installed: transformers; run: pip install 'vitcache[demo]'" in capsys.readouterr().err


def test_swap_exchanges_the_rows_of_two_keys() -> None:
    cache = make_cache()
    keys, rows = [bytes([i]) * 32 for i in range(3)], torch.randn(3, 3, 4).unbind()
    for key, item in zip(keys, rows, strict=True):
        cache.put(key, item)
    bench_accuracy.swap(cache, keys[0], keys[2])
    for key, expected in zip(keys, (rows[2], rows[1], rows[0]), strict=True):
        lease = cache.get(key)
        assert lease is not None
        with lease:
            assert torch.equal(lease.to_tensor(), expected)
    with pytest.raises(RuntimeError, match="expected an entry for each of the two cards"):
        bench_accuracy.swap(cache, keys[0], bytes([3]) * 32)


def test_load_cards_held_out_digits_are_on_no_training_card(decks: tuple[list[Card], list[Card]]) -> None:
    training, held_out = decks
    assert len(held_out) == HELD_OUT // 4

    def digits(cards: list[Card]) -> set[bytes]:
        quarters = [card.picture.photo.pixels.reshape(2, 8, 2, 8, 3).swapaxes(1, 2) for card in cards]
        return {quarter[row, column].tobytes() for quarter in quarters for row in (0, 1) for column in (0, 1)}

    assert digits(training).isdisjoint(digits(held_out))
    assert len(digits(held_out)) == HELD_OUT


def test_deal_each_turn_shows_one_card_and_asks_about_a_shown_card(
    decks: tuple[list[Card], list[Card]],
) -> None:
    model, rng = build_reader(), random.Random(0)
    chat = deal(decks[1], len(NAMES), rng)
    assert [question.card <= turn for turn, question in enumerate(chat.questions)] == [True] * len(NAMES)
    assert len(set(chat.questions)) == len(NAMES)
    ids, answered_at = chat.ids(model.config)
    for turn, prompt in enumerate(chat.prompts(model.config)):
        assert prompt.input_ids[0].tolist() == ids[: answered_at[turn]]
        assert int(prompt.token_types.sum()) == sum(picture.num_rows for picture in prompt.pictures)
        assert [picture.photo for picture in prompt.pictures] == [
            card.picture.photo for card in chat.cards[: turn + 1]
        ]
        assert ids[answered_at[turn]] == chat.answer(chat.questions[turn])
    all_questions = deal(decks[1], 2, rng, ask_all=True).questions
    assert len(set(all_questions)) == len(all_questions) == 8


def test_teach_same_lessons_give_the_same_weights_and_reduce_the_loss(
    decks: tuple[list[Card], list[Card]],
) -> None:
    losses, weights = [], []
    for _ in range(2):
        model = build_reader()
        losses.append([loss for _, loss in teach(model, decks[0], [(8, 1), (4, 2)], cards_per_step=8)])
        weights.append(model.state_dict())
        assert not model.training
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert losses[0][7] < losses[0][0]
