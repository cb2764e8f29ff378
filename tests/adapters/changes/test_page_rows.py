"""Each change of docs/changes.md: after it, the logits of an attached model are those of the stock model.

In each test the change alters the rows of the image and the logits, so a row from before the change would
alter the logits.
"""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from attached import plain_kernels  # noqa: F401
from model_changes import BY_CALL, CHANGES, Change
from model_changes.checks import check, check_fingerprint, check_unseen

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]
FINGERPRINT_CALLS = 3


def rows(*, unseen: bool = False, in_bytes: bool = False) -> list[object]:
    """One parameter per change and family. test_page_rows_sharded has those that need a process group."""
    return [
        pytest.param(change, family, id=f"{change.name}-{family}")
        for change in CHANGES.values()
        for family in change.families
        if not change.ranks
        and (change.noticed == BY_CALL or not unseen)
        and (change.in_bytes or not in_bytes)
    ]


@pytest.mark.parametrize(("change", "family"), rows())
def test_logits_after_the_change_are_those_of_the_stock_model(change: Change, family: str) -> None:
    check(change, family)


@pytest.mark.parametrize(("change", "family"), rows(unseen=True))
def test_change_that_needs_a_call_is_not_noticed_without_one(change: Change, family: str) -> None:
    check_unseen(change, family)


@pytest.mark.parametrize(("change", "family"), rows(in_bytes=True))
def test_fingerprint_finds_the_change_within_its_calls(change: Change, family: str) -> None:
    check_fingerprint(change, family, FINGERPRINT_CALLS)
