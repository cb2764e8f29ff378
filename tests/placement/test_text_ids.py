"""Ids of text tokens on the CPU: an id outside of the weight raises, and nothing is written."""

from __future__ import annotations

import pytest
import torch
from caches import make_cache
from placement_cases import poisoned

from vitcache import embed_tokens

WIDTH = 8


@pytest.mark.parametrize("bad", [-1, 5, 1 << 40])
@pytest.mark.parametrize("scale", [None, 0.5], ids=["moved as bits", "by the reference"])
def test_embed_tokens_id_without_a_row_is_refused_and_writes_nothing(bad: int, scale: float | None) -> None:
    weight, rows = torch.randn(5, WIDTH), torch.randn(2, WIDTH)
    out = poisoned(4, WIDTH, dtype=weight.dtype)
    with pytest.raises(IndexError, match=rf"input_ids\[3\] is {bad}, the weight has 5 rows"):
        embed_tokens(torch.tensor([0, 99, 99, bad]), weight, [rows], [1], out=out, scale=scale)
    assert out.isnan().all()


def test_embed_tokens_id_without_a_row_writes_no_stored_page() -> None:
    cache = make_cache(2, width=WIDTH, page_rows=1)
    weight, rows = torch.randn(5, WIDTH), torch.randn(2, WIDTH)
    with cache.reserve(bytes(32), 2) as reservation:  # type: ignore[union-attr]
        for segment in reservation.segments():
            segment.fill_(float("nan"))
        with pytest.raises(IndexError, match=r"input_ids\[0\] is 7"):
            embed_tokens(torch.tensor([7, 0, 0]), weight, [rows], [1], store=[reservation])
        assert reservation.to_tensor().isnan().all()
        built = embed_tokens(torch.tensor([4, 0, 0]), weight, [rows], [1], store=[reservation])
        assert torch.equal(built, torch.stack([weight[4], *rows]))
        assert torch.equal(reservation.to_tensor(), rows)
