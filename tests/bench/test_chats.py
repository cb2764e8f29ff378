"""The chat benches `multiturn` and `limit` at smoke size: encoded images, largest requests, plots."""

from __future__ import annotations

import argparse
import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from vitcache import Chunk, VisionPipeline
from vitcache.bench import plot, run
from vitcache.bench.chats import engines, sides
from vitcache.bench.chats.chat import Chat, Tower, load_model
from vitcache.bench.claims import bench_limit, bench_multiturn
from vitcache.bench.harness.record import FIELDS

pytestmark = pytest.mark.transformers

VITCACHE = (sides.VITCACHE, sides.COMPUTED, sides.ON_HOST)


def run_bench(name: str, directory: Path) -> tuple[Path, list[dict[str, Any]]]:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    arguments = ["--bench", name, "--cases", "smoke", "--out", str(directory)]
    assert run.run(parser.parse_args(arguments)) == 0
    [path] = directory.glob(f"{name}-*.json")
    return path, json.loads(path.read_text())


@pytest.fixture(scope="module")
def multiturn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    return run_bench("multiturn", tmp_path_factory.mktemp("multiturn"))


def values(rows: list[dict[str, Any]], case: str, metric: str) -> dict[str, float]:
    return {row["contender"]: row["value"] for row in rows if (row["case"], row["metric"]) == (case, metric)}


def test_multiturn_bench_records_the_times_of_every_turn_and_contender(
    multiturn: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, rows = multiturn
    assert all(tuple(row) == tuple(FIELDS) for row in rows)
    for case in ("tiny", "tiny-kv"):
        for turn in (1, 2, 3):
            for metric in ("vit_ms", "ttft_ms"):
                times = values(rows, f"{case} turn {turn}", metric)
                assert set(times) == set(sides.SIDES)
                assert min(times.values()) > 0
        per_chunk = [
            values(rows, row["case"], "vit_ms")
            for row in rows
            if row["case"].startswith(f"{case} turn 3 chunk") and row["contender"] == "no cache"
        ]
        assert len(per_chunk) == {"tiny": 7, "tiny-kv": 3}[case]
        for contender in sides.SIDES:
            whole = values(rows, f"{case} turn 3", "vit_ms")[contender]
            # With the two passes of "tiny", the median of the sums may differ from the sum of the medians.
            if case == "tiny-kv":
                assert sum(chunk[contender] for chunk in per_chunk) == pytest.approx(whole, rel=1e-3)


def test_multiturn_bench_counts_the_encoded_images_of_each_contender(
    multiturn: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, rows = multiturn
    for case in ("tiny", "tiny-kv"):
        encoded = values(rows, f"{case} turn 3", "encoded")
        assert {encoded[name] for name in (*VITCACHE, "dict")} == {1}
        assert encoded["request key"] == 3
        # All three images for each chunk with images: six of seven chunks, or two of the last three.
        assert encoded["no cache"] == {"tiny": 18, "tiny-kv": 6}[case]
    judged = [row for row in rows if row["metric"] == "encoded" and row["target"] is not None]
    assert {row["contender"] for row in judged} == set(VITCACHE)
    assert all(row["meets_target"] for row in judged)


def test_plot_result_file_of_multiturn_gives_a_png_file(
    multiturn: tuple[Path, list[dict[str, Any]]],
) -> None:
    pytest.importorskip("matplotlib")
    path, _ = multiturn
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")


def test_multiturn_bench_contender_with_wrong_rows_gets_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = engines.Engine.encode

    def swapped(self: Any, items: Any, device: torch.device) -> Any:
        return encode(self, items, device)[::-1]

    monkeypatch.setattr(engines.RequestKey, "encode", swapped)
    monkeypatch.setitem(bench_multiturn.CASES, "smoke", bench_multiturn.CASES["smoke"][:1])
    with pytest.raises(AssertionError):
        run_bench("multiturn", tmp_path)
    assert "request key built wrong rows" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_multiturn_bench_wrong_rows_in_a_later_chunk_give_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_of = engines.ImageDict.rows_of

    def flipped(self: Any, items: Any, needed: list[int], device: torch.device) -> Any:
        rows = rows_of(self, items, needed, device)
        return rows if 0 in needed else {position: part.flip(0) for position, part in rows.items()}

    monkeypatch.setattr(engines.ImageDict, "rows_of", flipped)
    monkeypatch.setitem(bench_multiturn.CASES, "smoke", bench_multiturn.CASES["smoke"][:1])
    with pytest.raises(AssertionError):
        run_bench("multiturn", tmp_path)
    assert "dict built wrong rows" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_multiturn_bench_runs_every_turn_before_it_times_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_turns = bench_multiturn.run_turns
    calls: list[tuple[type, range]] = []

    def recorded(case: Any, chat: Chat, tower: Tower, side: sides.Side, turns: range) -> Any:
        calls.append((type(side.pipeline), turns))
        return run_turns(case, chat, tower, side, turns)

    monkeypatch.setattr(bench_multiturn, "run_turns", recorded)
    monkeypatch.setitem(bench_multiturn.CASES, "smoke", bench_multiturn.CASES["smoke"][1:2])
    run_bench("multiturn", tmp_path)
    # Two warm-ups, then one pass of each contender. The batch of `NoCache` has another size in each turn.
    assert len(calls) == 2 + len(sides.SIDES)
    assert calls[:2] == [(engines.NoCache, range(1, 4)), (VisionPipeline, range(1, 4))]


def test_limit_bench_failed_try_is_freed_before_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_counted = bench_limit.open_counted
    opened: list[weakref.ref[Any]] = []

    def recorded(*args: Any) -> sides.Side:
        assert all(pipeline() is None for pipeline in opened)
        side = open_counted(*args)
        opened.append(weakref.ref(side.pipeline))
        return side

    monkeypatch.setattr(bench_limit, "open_counted", recorded)
    # With this cap every try fails. The error of a try is in a reference cycle with the try's pipeline.
    [case] = bench_limit.CASES["smoke"]
    monkeypatch.setitem(bench_limit.CASES, "smoke", [replace(case, cap_bytes=1 << 10, max_images=2)])
    gc.disable()
    try:
        _, rows = run_bench("limit", tmp_path)
    finally:
        gc.enable()
    assert len(opened) == 2 * len(rows) == 2 * len(bench_limit.CONTENDERS)
    assert {row["value"] for row in rows} == {0}


def test_limit_bench_vitcache_embeds_more_images_than_engines(tmp_path: Path) -> None:
    path, rows = run_bench("limit", tmp_path)
    [case] = bench_limit.CASES["smoke"]
    limits = values(rows, case.name, "limit")
    assert limits["no cache"] == limits["request key"] < limits["dict"] < limits["vitcache"]
    assert limits["vitcache"] == limits["vitcache, host tier"] == case.max_images
    assert {row["unit"] for row in rows if row["value"] == case.max_images} == {"images, at least"}
    pytest.importorskip("matplotlib")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", sides.ENGINES)
def test_engine_embed_chunk_that_begins_inside_an_image_has_its_rows(name: str) -> None:
    chat = Chat(load_model("tiny", torch.device("cpu")), (1, 4, 4), 3)
    tower = Tower(chat.model)
    with torch.no_grad():
        rows = tower(chat.features, chat.items).split(chat.rows)
    start, length = chat.items[0].spans[0].start + 1, chat.tokens_per_turn
    ids, deepstack = chat.prompt(3)[start : start + length], chat.deepstack(length)
    engine = sides.ENGINES[name](tower, chat.model.config.image_token_id)
    out = engine.embed(
        [Chunk(chat.items, start, length)], ids, chat.weight, deepstack=deepstack
    ).inputs_embeds
    wanted = chat.weight.detach()[ids]
    hidden = wanted.shape[1]
    levels = torch.zeros_like(deepstack)
    # Rows 1 to 3 of image 0, then text, then row 0 of image 1.
    for first, count, source in ((0, 3, rows[0][1:]), (length - 1, 1, rows[1][:1])):
        wanted[first : first + count] = source[:, :hidden]
        for level in range(chat.levels):
            levels[level, first : first + count] = source[:, hidden * (level + 1) : hidden * (level + 2)]
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(deepstack, levels)
