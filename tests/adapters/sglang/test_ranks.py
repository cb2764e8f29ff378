"""`Ranks`: the groups of SGLang, the ends of an encoder's call, and errors of other ranks."""

from __future__ import annotations

import sys
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.model import Model
from sglang_fakes.requests import Inputs, image
from sglang_fakes.scene import Scene, Window

from vitcache.adapters.sglang import ranks
from vitcache.adapters.sglang.encoder_calls import EncoderCalls
from vitcache.adapters.sglang.engine_modules import RUNTIME_CONTEXT
from vitcache.adapters.sglang.ranks import Ranks, RanksDiffer


class OtherRank:
    """Stands in for `Agreement`, with another rank that has the given flags behind the placement.

    `is_equal` False: the other rank's calls of an encoder end differently; None: they do not end.
    """

    def __init__(self, *failed: bool, is_equal: bool | None = True) -> None:
        self.failed, self.is_equal = failed, is_equal
        self.calls: list[str] = []
        self.ends: list[int] = []
        self.timeouts: list[timedelta | None] = []

    def states(self, states: torch.Tensor) -> torch.Tensor:
        self.calls.append("states")
        if states.dtype == torch.bool and self.failed:  # behind the placement
            states = states | torch.tensor(self.failed)
        return states.to(torch.uint8)

    def are_equal(self, number: int, timeout: timedelta | None = None) -> bool:
        self.calls.append("are_equal")
        self.ends.append(number)
        self.timeouts.append(timeout)
        if self.is_equal is None:
            raise RuntimeError("Operation timed out!")
        return self.is_equal


@pytest.fixture
def with_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a `Scene` of a model, beside another rank."""

    def make(other: OtherRank, model: Model | None = None) -> Scene:
        monkeypatch.setattr(ranks, "Agreement", lambda groups: other)
        monkeypatch.setattr(ranks, "attention_groups", lambda: ["group"])
        return Scene(monkeypatch, model)

    return make


def window(*seeds: int) -> Window:
    items = [image(seed, (4 * place, 4 * place + 2)) for place, seed in enumerate(seeds)]
    return Window(Inputs(items), 0, 4 * len(seeds))


def fake_context(monkeypatch: pytest.MonkeyPatch, parallel: Any) -> None:
    context: Any = ModuleType(RUNTIME_CONTEXT)
    context.get_parallel = lambda: parallel
    monkeypatch.setitem(sys.modules, RUNTIME_CONTEXT, context)


@pytest.mark.parametrize(
    ("tensor", "context", "wanted"), [(1, 1, []), (2, 1, ["tp"]), (1, 4, ["cp"]), (2, 2, ["tp", "cp"])]
)
def test_groups_are_the_attention_ranks_of_more_than_one_process(
    monkeypatch: pytest.MonkeyPatch, tensor: int, context: int, wanted: list[str]
) -> None:
    groups = {f"attn_{name}_group": SimpleNamespace(cpu_group=name) for name in ("tp", "cp")}
    fake_context(monkeypatch, SimpleNamespace(attn_tp_size=tensor, attn_cp_size=context, **groups))
    assert ranks.attention_groups() == wanted
    assert (Ranks.of_scheduler() is None) == (wanted == [])


def test_process_without_a_configuration_of_sglang_has_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unpublished:
        def __getattr__(self, name: str) -> int:
            raise ValueError(f"{name}: config namespace 'parallel' not published")

    fake_context(monkeypatch, Unpublished())
    assert Ranks.of_scheduler() is None
    monkeypatch.delitem(sys.modules, RUNTIME_CONTEXT)
    assert Ranks.of_scheduler() is None


def test_step_of_hits_agrees_once_and_a_step_with_an_encode_four_times(with_rank: Any) -> None:
    other = OtherRank()
    scene = with_rank(other)
    scene.step(window(1, 2))
    assert other.calls == ["states", "states", "are_equal", "states"]
    scene.step(window(1, 2))
    assert other.calls[4:] == ["states"]


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("is_equal", [True, False])
def test_error_without_a_readable_text_is_compared_as_any_other(with_rank: Any, is_equal: bool) -> None:
    def fail(rows: Any) -> Any:
        raise Unreadable

    other, step = OtherRank(is_equal=is_equal), window(1)
    scene = with_rank(other, Model(form=fail))
    if is_equal:
        scene.step(step, failed=step.inputs.mm_items)
    else:
        with pytest.raises(RuntimeError, match=r"raised Unreadable: .* ended differently"):
            scene.step(step)
    assert other.calls[:3] == ["states", "states", "are_equal"]
    assert other.timeouts == [ranks.RAISED_WAIT]


def test_item_that_fails_on_another_rank_behind_the_placement_is_zero_here(with_rank: Any) -> None:
    for levels in (0, 2):
        scene = with_rank(OtherRank(False, True), Model(levels))
        step = window(1, 2)
        scene.step(step, failed=[step.inputs.mm_items[1]])
        assert scene.service.stats().errors == 1


def test_only_the_tokens_of_the_chunk_become_zero(with_rank: Any) -> None:
    scene = with_rank(OtherRank(True))
    inputs = Inputs([image(1, (1, 2), (5, 8))])
    scene.step(Window(None, 0, 3), Window(inputs, 2, 5), failed=inputs.mm_items)


def test_encoder_that_raises_on_all_ranks_is_called_item_by_item(with_rank: Any) -> None:
    class Failing(Model):
        def encode(self, items: Any) -> Any:
            found = super().encode(items)
            if any(item.offsets is bad.offsets for item in items):
                raise ValueError("cannot read")
            return found

    other, step = OtherRank(), window(1, 2)
    bad = step.inputs.mm_items[0]
    scene = with_rank(other, Failing())
    scene.step(step, failed=[bad])
    assert other.calls.count("are_equal") == 3
    first, alone, last = other.timeouts
    assert (first, alone, last) == (ranks.RAISED_WAIT, ranks.RAISED_WAIT, None)


@pytest.mark.parametrize(
    ("is_equal", "text"),
    [(False, "has returned on this rank, but ended differently"), (None, "did not end the call: Operation")],
)
def test_call_that_ends_differently_on_another_rank_ends_the_step(
    with_rank: Any, is_equal: bool | None, text: str
) -> None:
    scene = with_rank(OtherRank(is_equal=is_equal))
    with pytest.raises(RuntimeError, match=text) as caught:
        scene.step(window(1))
    assert isinstance(caught.value.__cause__, RanksDiffer)
    assert scene.service.stats().errors == 0  # of items
    assert all(cache.leased_pages == 0 for cache in scene.service.stats().caches)


def test_error_that_only_this_rank_raised_is_the_cause(with_rank: Any) -> None:
    class Failing(Model):
        def encode(self, items: Any) -> Any:
            raise OSError("a driver")

    scene = with_rank(OtherRank(is_equal=None), Failing())
    with pytest.raises(RuntimeError, match="raised OSError: a driver on this rank") as caught:
        scene.step(window(1))
    assert isinstance(caught.value.__cause__.__cause__, OSError)  # type: ignore[union-attr]


@pytest.mark.parametrize("is_equal", [True, False])
def test_rows_that_cannot_be_converted_are_compared_as_an_error(
    with_rank: Any, monkeypatch: pytest.MonkeyPatch, is_equal: bool
) -> None:
    """If they cannot be on one rank alone, it must not encode the items of the call one by one."""

    def flat(calls: EncoderCalls, rows: torch.Tensor) -> torch.Tensor:
        raise MemoryError("no memory")

    monkeypatch.setattr(EncoderCalls, "_flat", flat)
    other, step = OtherRank(is_equal=is_equal), window(1, 2)
    scene = with_rank(other)
    if is_equal:
        scene.step(step, failed=step.inputs.mm_items)
        assert other.timeouts == [ranks.RAISED_WAIT] * 3  # the call, and each item alone
    else:
        with pytest.raises(RuntimeError, match="raised MemoryError: no memory on this rank, but ended diff"):
            scene.step(step)
        assert len(other.timeouts) == 1


def test_error_whose_text_cannot_be_made_is_compared(with_rank: Any) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    class Failing(Model):
        def encode(self, items: Any) -> Any:
            raise Silent

    other, step = OtherRank(), window(1)
    with_rank(other, Failing()).step(step, failed=step.inputs.mm_items)
    assert other.timeouts == [ranks.RAISED_WAIT]


def raised_at(line: int, text: str) -> Exception:
    code = "\n" * line + "raise ValueError(text)"
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is the argument
        exec(compile(code, "tower.py", "exec"), {"text": text})
    return caught.value


def test_end_of_a_call_tells_lines_and_shapes_apart_and_no_texts() -> None:
    # The text may name the device of a rank.
    assert ranks.end_of_error(raised_at(3, "cuda:0")) == ranks.end_of_error(raised_at(3, "cuda:1"))
    assert ranks.end_of_error(raised_at(3, "cuda:0")) != ranks.end_of_error(raised_at(4, "cuda:0"))
    rows = torch.zeros(3, 4)
    assert ranks.end_of_rows([rows]) == ranks.end_of_rows([rows + 1])
    ends = [rows, [rows], [rows, rows], rows[:2], rows[:, :2], rows.half(), None, "rows", ()]
    assert len({repr(ranks.end_of_rows(end)) for end in ends}) == len(ends)
    assert repr(ranks.end_of_error(raised_at(3, ""))) != repr(ranks.end_of_rows(rows))
