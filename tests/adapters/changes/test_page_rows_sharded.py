"""The changes of docs/changes.md that need a process group: FSDP2, DTensor and collectives.

Each is checked as in test_page_rows, by one rank and by two ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from attached import plain_kernels  # noqa: F401
from model_changes import BY_CALL, CHANGES, Change
from model_changes.checks import check, check_fingerprint, check_unseen
from ranks import run_ranks
from torch import distributed

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]
SHARDED = [change for change in CHANGES.values() if change.ranks]


def each(changes: list[Change]) -> Any:
    return pytest.mark.parametrize("change", changes, ids=lambda change: change.name)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], str]]:
    """The error of each change, by row and name, in each of two ranks."""
    done = run_ranks("changes_rank.py", tmp_path_factory.mktemp("ranks"), timeout=280)
    assert all(rank.returncode == 0 for rank in done), [rank.stderr for rank in done]
    found = []
    for rank in done:
        # Gloo of torch 2.9 prints lines of its own.
        lines = [json.loads(line) for line in rank.stdout.splitlines() if line.startswith('["')]
        found.append({(row, name): error for row, name, error in lines})
    return found


@pytest.mark.usefixtures("one_rank")
@each(SHARDED)
def test_logits_after_the_change_with_one_rank_are_stock(change: Change) -> None:
    check(change, *change.families)


@each([change for change in SHARDED if 2 in change.ranks])
def test_logits_after_the_change_with_two_ranks_are_stock(
    change: Change, errors: list[dict[tuple[str, str], str]]
) -> None:
    assert [rank[change.row, change.name] for rank in errors] == ["", ""]


@pytest.mark.usefixtures("one_rank")
@each([change for change in SHARDED if change.in_bytes])
def test_fingerprint_finds_the_sharded_change_within_its_calls(change: Change) -> None:
    check_fingerprint(change, *change.families, 3)


@pytest.mark.usefixtures("one_rank")
@each([change for change in SHARDED if change.noticed == BY_CALL])
def test_sharded_change_that_needs_a_call_is_not_noticed_without_one(change: Change) -> None:
    check_unseen(change, *change.families)
