"""An item that cannot be encoded: its rows are zero, all other rows are right, and the process lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality
from sglang_scene.comparison import Run, both, play
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import Prompt, Window, images, make_item
from sglang_scene.tower import Tower

Steps = Iterator[Sequence[Window]]
BAD = 2  # the seed of the item that the tower of a test cannot encode


def requests() -> Steps:
    """Four requests of one image each, twice."""
    for _ in range(2):
        yield [Prompt(8, [make_item(seed, (2, 5))]).window() for seed in range(4)]


def bad_hash() -> int:
    return make_item(BAD, (2, 5)).hash


def check(ours: Run, num_errors: int) -> None:
    assert ours.is_right, ours.wrong_tokens
    for rows in ours.rows:
        assert not rows[8 * BAD + 2 : 8 * BAD + 6].any()
    assert ours.stats.errors == num_errors
    assert ours.stats.caches[0].entries == 3


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("form", ["tensor", "list", "3-D"])
def test_encoder_that_raises_for_one_image_of_a_call_costs_only_that_image(form: str, levels: int) -> None:
    tower = Tower(levels, form)
    tower.failing = {bad_hash()}
    with pytest.raises(ValueError, match="cannot read"):
        play(stock(), requests, tower)
    tower = Tower(levels, form)
    tower.failing = {bad_hash()}
    check(play(plugged(), requests, tower), num_errors=2)


def replacing(replace: Callable[[torch.Tensor], Any]) -> Tower:
    """A tower whose list of rows has another object in place of the bad item's rows."""

    class Replacing(Tower):
        def get_image_feature(self, items: list[Any]) -> Any:
            rows = super().get_image_feature(items)
            bad = [item.hash == bad_hash() for item in items]
            return [replace(each) if is_bad else each for each, is_bad in zip(rows, bad, strict=True)]

    return Replacing(form="list")


@pytest.mark.parametrize(
    "replace",
    [
        pytest.param(lambda rows: rows[:-1], id="short"),
        pytest.param(lambda rows: torch.cat([rows, rows[:1]]), id="long"),
        pytest.param(lambda rows: rows[:, :-1], id="narrow"),
        pytest.param(lambda rows: rows[:0], id="empty"),
        pytest.param(lambda rows: rows[0], id="1-D"),
        pytest.param(lambda rows: rows.to(torch.int16), id="int16"),
        pytest.param(lambda rows: None, id="None"),
        pytest.param(lambda rows: "rows", id="str"),
    ],
)
def test_wrong_rows_of_one_image_cost_only_that_image(replace: Callable[[torch.Tensor], Any]) -> None:
    ours = play(plugged(), requests, replacing(replace))
    bad = list(range(8 * BAD + 2, 8 * BAD + 6))
    assert ours.wrong_tokens == [bad, bad]  # the truth has the right rows
    assert not any(rows[bad].any() for rows in ours.rows)
    assert ours.stats.errors == 2
    assert ours.stats.caches[0].entries == 3


def test_long_output_of_a_request_is_an_error_and_not_cropped() -> None:
    class Long(Tower):
        def get_image_feature(self, items: list[Any]) -> Any:
            return torch.cat([super().get_image_feature(items), torch.ones(1, 32, dtype=torch.bfloat16)])

    def step() -> Steps:
        yield [Prompt(8, [make_item(0, (2, 5))]).window()]

    ours = play(plugged(), step, Long())
    assert ours.wrong_tokens == [[2, 3, 4, 5]]
    assert not ours.rows[0][2:6].any()
    assert ours.stats.errors == 1


def test_modality_without_an_encoder_is_an_error_of_its_items() -> None:
    class ImagesOnly(Tower):
        get_audio_feature = None  # type: ignore[assignment]

    def step() -> Steps:
        items = [make_item(0, (2, 5)), make_item(1, (7, 8), modality=Modality.AUDIO)]
        yield [Prompt(10, items).window()]

    with pytest.raises(AssertionError):
        play(stock(), step, ImagesOnly())
    ours = play(plugged(), step, ImagesOnly())
    assert ours.wrong_tokens == [[7, 8]]
    assert not ours.rows[0][7:9].any()
    assert ours.stats.errors == 1


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(torch.ones(3, 32), id="short"),
        pytest.param(torch.ones(4, 31), id="narrow"),
        pytest.param(torch.ones(32), id="1-D"),
        pytest.param([[0.5] * 32] * 4, id="list of float"),
    ],
)
def test_wrong_precomputed_rows_cost_only_their_item(rows: Any) -> None:
    def step() -> Steps:
        prompt = Prompt(8, [make_item(0, (2, 5))])  # the truth reads this item
        broken = prompt.inputs.mm_items[0] = make_item(0, (2, 5))
        broken.precomputed_embeddings, broken.feature = rows, None
        yield [prompt.window(), images(2).window()]

    ours = play(plugged(), step)
    assert ours.wrong_tokens == [[2, 3, 4, 5]]
    assert not ours.rows[0][2:6].any()
    assert ours.stats.errors == 1


def test_precomputed_rows_behind_those_of_the_tokens_are_left_out_as_in_sglang() -> None:
    def steps() -> Steps:
        item = make_item(0, (2, 5))
        rows = Tower().rows(item)
        item.precomputed_embeddings, item.feature = torch.cat([rows, rows + 1]), None
        yield from Prompt(8, [item]).chunks(4, 4)

    both(steps)


@pytest.mark.parametrize("offsets", [[(2, 5), (4, 8)], [(5, 2)], [(-1, 3)], [("a", 3)]])
def test_item_with_impossible_offsets_is_left_out_and_counted(
    offsets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def step() -> Steps:
        prompt = images(2)
        broken = make_item(9, (0, 2))
        broken.offsets = offsets
        prompt.inputs.mm_items.append(broken)
        yield [prompt.window()]

    ours = play(plugged(), step)
    assert ours.is_right
    assert ours.stats.errors == 1
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_later_step_after_failures_is_served_from_the_cache() -> None:
    tower = Tower()
    tower.failing = {bad_hash()}

    def steps() -> Steps:
        yield from requests()
        tower.failing.clear()
        yield from requests()

    ours = play(plugged(), steps, tower)
    assert ours.is_right
    assert ours.stats.errors == 2
    assert ours.stats.caches[0].entries == 4
