"""`ScatterCall` in two halves, as the pipeline uses it: checks first, then a native placement."""

from __future__ import annotations

import pytest
import torch
from placement_cases import make_rows, poisoned, same_bits

from vitcache import Span, _native, scatter_embeddings
from vitcache.placement.placement import Placement
from vitcache.placement.scatter_call import ScatterCall

WIDTH = 8


def native_runs(*spans: list[Span]) -> _native.Placement:
    native = _native.Placement()
    native.add_spans(spans, Span)
    return native


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 2.0, 3])
def test_run_placed_writes_the_spans_and_returns_the_same_tensor(scale: float | None) -> None:
    rows, spans = make_rows(3, WIDTH, torch.float32), [Span(1, 2), Span(5, 1, 2)]
    expected = scatter_embeddings(torch.ones(8, WIDTH), [rows], [spans], scale=scale)
    inputs_embeds = torch.ones(8, WIDTH)
    call = ScatterCall(inputs_embeds, None, scale)
    native = native_runs(spans)
    call.check_spans(native)
    version = inputs_embeds._version
    placed = Placement.from_native(call.destination, native, [rows], [0])
    assert call.run_placed(placed) is inputs_embeds
    assert same_bits(inputs_embeds, expected)
    assert inputs_embeds._version > version


def test_run_after_check_spans_places_a_list_of_spans() -> None:
    rows, out = make_rows(2, 3 * WIDTH, torch.float32), poisoned(4, WIDTH, dtype=torch.float32)
    deepstack = torch.zeros(2, 4, WIDTH)
    call = ScatterCall(out, deepstack, None)
    call.check_spans([[Span(1, 2)]])
    call.run([rows], [[Span(1, 2)]], None)
    assert torch.equal(out[1:3], rows[:, :WIDTH])
    assert torch.equal(deepstack[:, 1:3], rows[:, WIDTH:].reshape(2, 2, WIDTH).transpose(0, 1))
    assert not deepstack[:, [0, 3]].any()


def test_constructor_refuses_wrong_arguments_before_any_row_exists() -> None:
    with pytest.raises(TypeError, match="scale must be a real number or None, got bool"):
        ScatterCall(torch.ones(2, WIDTH), None, True)
    with pytest.raises(TypeError, match="inputs_embeds must be a tensor, got list"):
        ScatterCall([1], None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"deepstack has shape \(1, 3, 8\), it must be \(L, 2, 8\)"):
        ScatterCall(torch.ones(2, WIDTH), torch.ones(1, 3, WIDTH), None)
