"""The demo counts the placed calls of the attached model, and gives the reason for each other call."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from vitcache.demo.conversation import build_prompt
from vitcache.demo.families import FAMILIES
from vitcache.demo.report import facts
from vitcache.demo.row import Row
from vitcache.demo.turns import build, build_sides, measure_turn, one_thread, process_photos

pytestmark = pytest.mark.transformers


@functools.cache
def measured(*, reads: bool) -> tuple[Row, dict[str, int]]:
    """The row of a turn, and `unplaced_calls` of the attached model, whose forward `reads` the features."""
    family = FAMILIES["llava"]
    with torch.no_grad(), one_thread():
        stock = build(family, torch.device("cpu"))
        processor, pictures = process_photos(family, stock, 1)
        sides = build_sides(stock, processor, pictures)
        base = sides.attached.model.model
        find_mask = base.get_placeholder_mask

        def reading_mask(*args: Any, image_features: torch.Tensor, **kwargs: Any) -> Any:
            assert image_features.abs().sum() > 0
            return find_mask(*args, image_features=image_features, **kwargs)

        if reads:
            base.get_placeholder_mask = reading_mask
        row = measure_turn(sides, build_prompt(pictures, stock.config))
        return row, dict(sides.attached.attachment.stats().unplaced_calls)


def test_turn_whose_forward_reads_the_features_has_the_reason_of_the_stats() -> None:
    row, unplaced = measured(reads=True)
    assert row.equal
    assert list(unplaced.values()) == [1]
    assert (row.placed_calls_attach, row.unplaced_calls_attach) == (0, unplaced)


def test_facts_of_placed_turns_say_where_the_rows_were_written() -> None:
    row, _ = measured(reads=False)
    words = facts([row, row])[-1]
    assert "2 of 2 forward calls were placed" in words
    assert "to their tokens in `inputs_embeds`" in words
    assert "a copy of the rows" not in words


def test_facts_name_the_number_and_the_reason_of_calls_not_placed() -> None:
    (placed, _), (other, unplaced) = measured(reads=False), measured(reads=True)
    (reason,) = unplaced
    words = facts([other, placed, other])[-1]
    assert "1 of 3 forward calls were placed" in words
    assert words.endswith(f" In 2 the stock merge got a copy of the rows, because {reason}.")
