"""The host-time cases of the bench `step`: every contender builds the rows of a loop, or gets no number."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitcache.bench import run
from vitcache.bench.chats.gathers import ROWS, Gather, MaskedDict, Request, SlicedDict
from vitcache.bench.chats.sglang_gather import Sglang, StaticCache
from vitcache.bench.chats.vllm_gather import PlaceholderRange, Vllm, VllmFeature
from vitcache.bench.claims import bench_step, host_steps


def run_smoke(directory: Path) -> tuple[int, list[dict[str, Any]]]:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    arguments = ["--cases", "smoke", "--out", str(directory), "--bench", "step"]
    cases = [case for case in bench_step.CASES["smoke"] if isinstance(case, host_steps.HostCase)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench_step.CASES, "smoke", cases)
        code = run.run(parser.parse_args(arguments))
    return code, [row for path in directory.glob("*.json") for row in json.loads(path.read_text())]


def test_step_bench_every_contender_has_a_ratio_for_hits_misses_and_threads(tmp_path: Path) -> None:
    threads_before = torch.get_num_threads()
    code, rows = run_smoke(tmp_path)
    assert (code, torch.get_num_threads()) == (0, threads_before)
    contenders = {host_steps.JUDGED, *host_steps.CONTENDERS}
    assert "vLLM" in contenders
    for case in ("3 items, hits", "3 items, misses", "5 items, hits", "5 items, misses"):
        assert {row["contender"] for row in rows if row["case"] == case} == contenders
    for case in ("3 items, 1 threads", "3 items, 2 threads"):
        assert {row["contender"] for row in rows if row["case"] == case} == {"vitcache", "dict, cat and mask"}
    for row in rows:
        reference = next(
            other["value"]
            for other in rows
            if (other["case"], other["contender"]) == (row["case"], host_steps.REFERENCE)
        )
        assert row["ratio"] == pytest.approx(row["value"] / reference, rel=1e-3)
        assert (row["target"], row["unit"]) == (None, "us")


def test_step_bench_draws_hits_misses_and_threads(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _, rows = run_smoke(tmp_path)
    hits, misses, threads = bench_step.draw(rows).axes
    assert [len(axes.containers) for axes in (hits, misses, threads)] == [5, 5, 4]
    assert list(hits.containers[0].lines[0].get_xdata()) == [3, 5]
    assert hits.get_xscale() == "log"


def test_step_bench_wrong_contender_gets_no_number_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(SlicedDict):
        def step(self) -> torch.Tensor:
            out = super().step()
            out[-1] += 1
            return out

    monkeypatch.setitem(host_steps.CONTENDERS, "vLLM", Wrong)
    code, rows = run_smoke(tmp_path)
    assert code == 1
    assert not [row for row in rows if row["contender"] == "vLLM"]
    assert "vLLM: Wrong built rows unlike those of the loop over tokens" in capsys.readouterr().err


@pytest.mark.parametrize("make", [MaskedDict, SlicedDict, Vllm, Sglang])
@pytest.mark.parametrize("items", [1, 2, 7])
def test_contender_after_forget_encodes_all_items_again(
    make: Callable[[Request], Gather], items: int
) -> None:
    request = Request(items)
    gather = make(request)
    gather.check()
    gather.forget()
    gather.check()
    assert request.num_encoded == 2 * items


def test_contender_that_encodes_hits_again_is_refused() -> None:
    class Forgetful(MaskedDict):
        def step(self) -> torch.Tensor:
            self.forget()
            return super().step()

    with pytest.raises(RuntimeError, match="Forgetful was expected to encode 0 items, got 3"):
        Forgetful(Request(3)).check()


def test_vllm_gather_of_a_window_returns_the_rows_of_its_tokens() -> None:
    request = Request(4)
    gather = Vllm(request)
    gather.step()
    is_embed = torch.tensor([True, False, True, False, True])
    place = PlaceholderRange(request.starts[1] - 1, 5, is_embed)  # 3 rows in 5 tokens
    gather._features[1] = VllmFeature(request.keys[1].hex(), "image", place)
    begin = place.offset + 2  # behind the first row
    slices, mask = gather.gather(np.array([begin]))
    assert [len(rows) for rows in slices] == [2, ROWS, ROWS]
    assert torch.equal(slices[0], request.rows[1][1:3])
    assert mask[:5].tolist() == [True, False, True, False, True]  # the fourth token is text
    assert gather.gather(np.array([request.num_tokens]))[0] == []


def test_static_cache_evicts_the_least_recently_used_entry_and_owns_its_rows() -> None:
    batch = torch.zeros(12, 1)  # three entries of 16 bytes each
    cache = StaticCache(32)
    assert all(cache.set(key, batch[4 * key : 4 * key + 4]) for key in (0, 1))
    assert cache.get(0) is not None
    assert cache.set(2, batch[8:])
    assert cache.get(1) is None
    kept = cache.get(2)
    assert kept is not None
    assert kept.untyped_storage().nbytes() == 16
    assert not cache.set(3, batch)
    assert cache.get(0) is not None
