"""The lines of docs/changes.md that invalidate an attachment after a method that writes weights."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import peft.utils.hotswap
import torch
from attached import plain_kernels  # noqa: F401
from changes_table import PAGE
from model_changes import CHANGES, Change
from model_changes.checks import attached_steps, stock_steps

import vitcache

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]
HOT_SWAPS = [change for change in CHANGES.values() if "`hotswap_adapter`, which writes" in change.row]


@pytest.mark.parametrize("change", HOT_SWAPS, ids=lambda change: change.name)
def test_line_for_hot_swaps_makes_the_logits_stock(change: Change) -> None:
    [line] = re.findall(r"^\| `hotswap_adapter` of PEFT \| `(.*)` \|$", PAGE.read_text(), re.M)
    stock = stock_steps(change, *change.families)
    handles: list[Any] = []

    def run_the_line(attachment: vitcache.Attachment) -> None:
        handles.append(eval(line, {"vitcache": vitcache, "peft": peft, "attachment": attachment}))

    try:
        attached = attached_steps(change, *change.families, on_attach=run_the_line)
    finally:
        for handle in handles:
            handle.remove()
    assert handles
    for expected, step in zip(stock, attached, strict=True):
        assert all(torch.equal(logits, expected.logits) for logits in step.logits)
