"""Checks of one `Change`: the same steps with a stock model and with an attached model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, one_at_a_time
from torch import Tensor

from model_changes.change import BY_CALL, BYPASSED, KEPT, NAMED, REFUSED, Change
from model_changes.scene import Scene, run
from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.changes.model_changes import FINGERPRINT, INVALIDATED
from vitcache.adapters.transformers import Attachment, attach


@dataclass(frozen=True)
class Stock:
    """The rows of the image and the logits of the stock model after a step."""

    rows: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Attached:
    """The logits of each call of the attached model after a step, and its counts behind each call."""

    logits: list[Tensor]
    counts: list[AttachStats]

    @property
    def stats(self) -> AttachStats:
        return self.counts[-1]


def stock_steps(change: Change, name: str) -> list[Stock]:
    family = FAMILIES[name]
    scene = Scene(family, one_at_a_time(family, family.model()))
    base, seen = scene.model.base_model, []
    encode = base.get_image_features

    def record(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        rows = output.pooler_output
        seen.append((rows if isinstance(rows, Tensor) else torch.cat(list(rows))).clone())
        return output

    base.get_image_features = functools.wraps(encode)(record)  # `generate` reads its signature
    steps = []
    for _ in run(change, scene):
        logits = scene.logits()
        steps.append(Stock(seen[-1], logits))
    return steps


def attached_steps(
    change: Change,
    name: str,
    *,
    calls: int = 2,
    invalidate: bool = False,
    on_attach: Callable[[Attachment], None] = lambda attachment: None,
    **options: Any,
) -> list[Attached]:
    """Make `calls` calls after each step; before them, call `invalidate` or not."""
    family = FAMILIES[name]
    scene = Scene(family, family.model())
    steps: list[Attached] = []
    attachment = None
    for _ in run(change, scene):
        if attachment is None:
            attachment = attach(scene.model, **options)
            on_attach(attachment)
        elif invalidate:
            attachment.invalidate()
        steps.append(Attached([], []))
        for _ in range(calls):
            steps[-1].logits.append(scene.logits())
            steps[-1].counts.append(attachment.stats())
    return steps


def stock_that_differs(change: Change, name: str) -> list[Stock]:
    """The steps of the stock model. Each step alters the rows and the logits, or the rows of none."""
    steps = stock_steps(change, name)
    assert len(steps) > 1
    for before, after in pairwise(steps):
        assert _equal(before.rows, after.rows) == (change.noticed == KEPT), "the rows before and after"
        assert change.noticed == KEPT or not _equal(before.logits, after.logits), "the logits do not differ"
    return steps


def check(change: Change, name: str) -> None:
    """Assert that an attached model notices the change, or gets a call of `invalidate`, and is exact.

    The first call after a step encodes the image, if its rows are not cached. The second call is a hit; with
    FSDP2 the third, because the first one may leave other parameters in the model.
    """
    stock = stock_that_differs(change, name)
    if change.noticed == REFUSED:
        with pytest.raises(RuntimeError, match="detach the model and attach it again"):
            attached_steps(change, name)
        return
    needs_call = change.noticed == BY_CALL
    attached = attached_steps(change, name, invalidate=needs_call, calls=3 if change.ranks else 2)
    for number, (expected, step) in enumerate(zip(stock, attached, strict=True)):
        for call, logits in enumerate(step.logits):
            assert _equal(logits, expected.logits), f"step {number}, call {call}: rows before the change"
    encoded = [step.stats.encoded for step in attached]
    changes = attached[-1].stats.changes
    if change.noticed == KEPT:
        assert (encoded[-1], changes) == (1, {}), f"{encoded[-1]} encoded, counted: {changes}"
        return
    if change.noticed == BYPASSED:
        assert attached[-1].stats.bypassed > 0
        assert change.kind == "" or change.kind in changes, f"counted: {changes}"
        return
    kind = INVALIDATED if needs_call else change.kind
    assert not kind or kind in changes, f"counted: {changes}, {encoded}"
    if change.ranks:
        for step in attached:
            assert step.counts[-1].hits > step.counts[-2].hits, "the third call encodes again"
        return
    new = list(range(1, len(encoded) + 1))
    if change.noticed == NAMED:
        assert _equal(stock[0].logits, stock[-1].logits), "the last step does not undo the change"
        new[-1] -= 1  # the entry of step 0 is found again
    assert encoded == new, f"encoded: {encoded}"


def check_unseen(change: Change, name: str) -> None:
    """Assert that without a call of `invalidate`, the attached model uses its old rows."""
    stock = stock_that_differs(change, name)
    attached = attached_steps(change, name)
    assert _equal(attached[0].logits[-1], stock[0].logits)
    assert not _equal(attached[-1].logits[-1], stock[-1].logits), "the change was noticed"
    assert not attached[-1].stats.changes, f"counted: {attached[-1].stats.changes}"


def check_fingerprint(change: Change, name: str, calls: int) -> None:
    """Assert that `fingerprint_calls` finds the change within that number of calls."""
    stock = stock_that_differs(change, name)
    attached = attached_steps(change, name, calls=calls, fingerprint_calls=calls)
    for expected, step in zip(stock, attached, strict=True):
        assert _equal(step.logits[-1], expected.logits), "the change was not found"
    changes = attached[-1].stats.changes
    assert changes.keys() == {FINGERPRINT}, f"counted: {changes}"


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)
