"""`agree_over`: ranks with different caches encode the union of their misses; without `agree` they fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from vitcache.adapters.distributed import agree_over

PROGRAM = "distributed_rank.py"


def test_ranks_with_different_caches_encode_the_union_of_their_misses(tmp_path: Path) -> None:
    done = run_ranks(PROGRAM, tmp_path, "agree")
    for rank in done:
        assert rank.returncode == 0, rank.stderr
    # The cache of rank 0 has images 0 and 3, that of rank 1 has 1 and 3: both ranks encode 0, 1 and 2.
    # Gloo of torch 2.9 prints lines of its own.
    assert [rank.stdout.splitlines()[-1] for rank in done] == ["encoded [[0, 1, 2]]"] * 2


@pytest.mark.parametrize(("damaged", "encoded"), [(0, [1, 2]), (1, [0, 2]), (2, [0, 1])])
def test_item_that_one_rank_cannot_load_fails_on_both(tmp_path: Path, damaged: int, encoded: list) -> None:
    """The item is a miss of the rank that cannot load it, a hit, or a miss of both ranks."""
    first, second = run_ranks(PROGRAM, tmp_path, f"damaged{damaged}")
    for rank, cause in ((first, "RuntimeError"), (second, "OSError")):
        assert rank.returncode == 0, rank.stderr
        assert rank.stdout.splitlines()[-1] == f"encoded [{encoded}] {cause}"


def test_agreement_of_two_ranks_has_one_all_reduce_for_62_items_and_two_for_more(tmp_path: Path) -> None:
    for rank in run_ranks(PROGRAM, tmp_path, "agreement"):
        assert rank.returncode == 0, rank.stderr


def test_ranks_without_agree_fail_in_the_encoders_collective(tmp_path: Path) -> None:
    # Rank 0 calls one collective more than rank 1: its call fails after rank 1 has ended.
    done = run_ranks(PROGRAM, tmp_path, "alone")
    assert any(rank.returncode != 0 for rank in done)


def test_ranks_with_different_numbers_of_items_raise_on_every_rank(tmp_path: Path) -> None:
    for rank in run_ranks(PROGRAM, tmp_path, "sizes"):
        assert rank.returncode == 1
        assert "ranks must have equal numbers of items in one step, got 1 to 2" in rank.stderr


def test_agree_over_without_a_process_group_raises() -> None:
    assert not torch.distributed.is_initialized()
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialized"):
        agree_over()
