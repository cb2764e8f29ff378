"""Random steps: the plug-in against plain torch always, and against SGLang alone where SGLang is right."""

from __future__ import annotations

import pytest
import torch
from sglang_scene.comparison import play
from sglang_scene.plugin import plugged, stock
from sglang_scene.random_steps import Traffic, count_failures

NUM_STEPS = 90
SIZES = {"1 KiB": 1 << 10, "16 KiB": 1 << 14, "1 MiB": 1 << 20}
GRID = [(levels, size) for levels in (0, 2) for size in SIZES]
CASES = pytest.mark.parametrize(("seed", "levels", "size"), [(n, *pair) for n, pair in enumerate(GRID)])


@CASES
def test_random_steps_have_the_bits_of_sglang_and_of_torch(seed: int, levels: int, size: str) -> None:
    traffic = Traffic(seed, NUM_STEPS, levels=levels, is_wild=False)
    theirs, ours = (play(side(SIZES[size]), traffic, traffic.tower()) for side in (stock, plugged))
    shown = f"seed {seed}"
    assert theirs.is_right, shown
    assert ours.is_right, (shown, ours.wrong_tokens)
    assert all(torch.equal(*pair) for pair in zip(theirs.rows, ours.rows, strict=True)), shown
    assert (ours.stats.errors, ours.stats.originals, ours.stats.unshared) == (0, {}, 0), shown
    assert ours.stats.steps == ours.num_steps
    assert 0 < ours.encodes[-1] <= theirs.encodes[-1], shown


@CASES
def test_wild_random_steps_have_the_bits_of_torch(seed: int, levels: int, size: str) -> None:
    traffic = Traffic(seed, NUM_STEPS, levels=levels, is_wild=True)
    ours = play(plugged(SIZES[size], max_rows_per_encode=40), traffic, traffic.tower())
    shown = f"seed {seed}"
    assert ours.is_right, (shown, ours.wrong_tokens)
    failures = sum(count_failures(windows, ours.tower) for windows in traffic())
    assert ours.stats.errors == failures > 0, shown
    assert ours.stats.originals == {}, shown
    assert ours.stats.steps == ours.num_steps
