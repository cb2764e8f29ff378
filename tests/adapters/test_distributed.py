"""Ranks whose caches disagree encode the union in one order and finish; without `agree` they get stuck."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitcache.adapters.distributed import agree_over

RANK = Path(__file__).parents[1] / "support" / "distributed_rank.py"


def run_ranks(
    tmp_path: Path, *arguments: str, timeout: float = 120
) -> list[subprocess.CompletedProcess[str]]:
    """Run both ranks to their end, or kill them and raise TimeoutExpired."""
    path = os.pathsep.join(filter(None, [str(RANK.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(RANK), *arguments]
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [
        subprocess.CompletedProcess(command, rank.returncode, *output)
        for rank, output in zip(ranks, outputs, strict=True)
    ]


def test_ranks_whose_caches_disagree_encode_the_union(tmp_path: Path) -> None:
    done = run_ranks(tmp_path, "agree")
    for rank in done:
        assert rank.returncode == 0, rank.stderr
    # Rank 0 held the first image and rank 1 the second: both encode these, and the third, but not the fourth.
    assert [rank.stdout.split() for rank in done] == [["encoded", "[[0,", "1,", "2]]"]] * 2


def test_ranks_that_do_not_agree_are_stuck_in_the_collective(tmp_path: Path) -> None:
    # Rank 0 enters two collectives and rank 1 one: the first fails once the other has gone.
    done = run_ranks(tmp_path, "alone")
    assert any(rank.returncode != 0 for rank in done)


def test_ranks_with_other_numbers_of_items_are_told(tmp_path: Path) -> None:
    for rank in run_ranks(tmp_path, "sizes"):
        assert rank.returncode == 1
        assert "ranks must have equal numbers of items in one step, got 1 to 2" in rank.stderr


def test_a_group_must_be_there() -> None:
    assert not torch.distributed.is_initialized()
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialised"):
        agree_over()
