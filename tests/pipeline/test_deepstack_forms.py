"""Forms of deepstack levels in `embed` and `place`: one tensor, a list, columns, or packed rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, expected, feature, make_ids, make_weight
from torch import Tensor

from vitcache import Chunk, EmbedResult, Item, Items, Span, VisionPipeline

WEIGHT, LEVELS, TOKENS = make_weight(), 2, 14
ITEMS = Items(
    [
        Item(feature(0, 4), [Span(1, 2), Span(5, 2, 2)]),
        Item(feature(1, 2), Span(3, 2), row_width=HIDDEN),
        Item(feature(2, 3), Span(9, 3)),
    ]
)
IMAGE_TOKENS = [1, 2, 3, 4, 5, 6, 9, 10, 11]


def run(pipeline: VisionPipeline, method: str, chunk: Chunk, **levels: Any) -> EmbedResult:
    ids = make_ids(TOKENS)
    if method == "embed":
        return pipeline.embed([chunk], ids, WEIGHT, **levels)
    return pipeline.place([chunk], WEIGHT[ids], **levels)


def wanted_levels(method: str) -> Tensor:
    levels = expected([Chunk(ITEMS, 0, TOKENS)], make_ids(TOKENS), WEIGHT, levels=LEVELS)[1]
    if method == "place":
        is_text = [token for token in range(TOKENS) if token not in IMAGE_TOKENS]
        levels[:, is_text] = 7.0
    return levels


@pytest.mark.parametrize("method", ["embed", "place"])
@pytest.mark.parametrize("form", ["tensor", "list", "columns", "packed"])
def test_every_form_gets_the_same_rows(method: str, form: str) -> None:
    tower = Tower(HIDDEN * (1 + LEVELS))
    pipeline = VisionPipeline(tower, make_cache(width=HIDDEN * (1 + LEVELS)))
    for _ in range(2):
        columns = torch.full((TOKENS, LEVELS * HIDDEN), 7.0)
        packed = torch.full((LEVELS, len(IMAGE_TOKENS), HIDDEN), 7.0)
        levels: dict[str, Any] = {
            "tensor": {"deepstack": columns.view(TOKENS, LEVELS, HIDDEN).permute(1, 0, 2)},
            "list": {"deepstack": list(columns.view(TOKENS, LEVELS, HIDDEN).unbind(1))},
            "columns": {"deepstack": columns},
            "packed": {"deepstack_rows": packed},
        }[form]
        assert run(pipeline, method, Chunk(ITEMS, 0, TOKENS), **levels).errors == []
        wanted = wanted_levels(method)
        if form == "packed":
            assert torch.equal(packed, wanted[:, IMAGE_TOKENS])
        else:
            assert torch.equal(columns.view(TOKENS, LEVELS, HIDDEN).transpose(0, 1), wanted)
    assert len(tower.encoded) == 3


@pytest.mark.parametrize("method", ["embed", "place"])
def test_a_wrong_number_of_packed_rows_is_refused_before_anything_is_encoded(method: str) -> None:
    tower = Tower(HIDDEN * (1 + LEVELS))
    pipeline = VisionPipeline(tower, make_cache(width=HIDDEN * (1 + LEVELS)))
    packed = torch.ones(LEVELS, len(IMAGE_TOKENS), HIDDEN)
    message = "deepstack_rows has 9 rows a level, the step places rows at 6 tokens"
    with pytest.raises(ValueError, match=message):
        run(pipeline, method, Chunk(ITEMS, 0, 8), deepstack_rows=packed)
    both = {"deepstack": torch.ones(LEVELS, TOKENS, HIDDEN), "deepstack_rows": packed}
    with pytest.raises(ValueError, match="deepstack and deepstack_rows exclude each other"):
        run(pipeline, method, Chunk(ITEMS, 0, TOKENS), **both)
    assert torch.equal(packed, torch.ones_like(packed))
    assert tower.calls == []
    assert pipeline.cache.stats().misses == 0


@pytest.mark.parametrize("method", ["embed", "place"])
def test_packed_rows_of_a_failed_item_are_zero(method: str) -> None:
    def fails(item: Item) -> None:
        if item is ITEMS[0]:
            raise OSError("damaged")

    pipeline = VisionPipeline(
        Tower(HIDDEN * (1 + LEVELS), fails=fails), make_cache(width=HIDDEN * (1 + LEVELS))
    )
    packed = torch.full((LEVELS, len(IMAGE_TOKENS), HIDDEN), 7.0)
    [error] = run(pipeline, method, Chunk(ITEMS, 0, TOKENS), deepstack_rows=packed).errors
    assert error.item == 0
    assert not packed[:, :6].any()  # rows of the failed item, and of an item without deepstack columns
    assert torch.equal(packed[:, 6:], wanted_levels(method)[:, 9:12])
