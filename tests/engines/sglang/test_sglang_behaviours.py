"""Behaviours that SGLang's own tests of this step require, in other words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality
from sglang_scene.comparison import both, play
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import Prompt, Window, images, make_item
from sglang_scene.tower import Tower

Steps = Iterator[Sequence[Window]]
LEVELS = pytest.mark.parametrize("levels", [0, 2])


class RefusingTower(Tower):
    """Encodes a number of items, and then fails the test."""

    def __init__(self, num_items: int, levels: int = 0) -> None:
        super().__init__(levels)
        self.most = num_items

    def get_image_feature(self, items: list[Any]) -> Any:
        rows = super().get_image_feature(items)
        assert self.num_encodes <= self.most
        return rows

    get_video_feature = get_audio_feature = get_image_feature


@LEVELS
def test_hits_of_all_items_never_call_the_encoder(levels: int) -> None:
    def steps() -> Steps:
        for _ in range(3):
            prompt = images(3)
            yield [prompt.window()]
            yield from prompt.chunks(10, 20, 35)

    _, ours = both(steps, lambda: RefusingTower(3, levels))
    assert ours.stats.errors == 0


def test_duplicates_of_a_step_are_encoded_once_in_requests_and_in_a_prompt() -> None:
    def step() -> Steps:
        items = [make_item(0, (2, 5)), make_item(1, (7, 9)), make_item(0, (11, 14))]
        yield [Prompt(16, items).window(), Prompt(8, [make_item(1, (1, 3))]).window()]

    both(step, lambda: RefusingTower(2))


def test_misses_of_several_requests_share_one_call_in_their_order() -> None:
    def step() -> Steps:
        yield [Prompt(12, [make_item(k, (2, 5)), make_item(k + 10, (7, 9))]).window() for k in range(4)]

    theirs, ours = both(step)
    assert ours.calls == theirs.calls == [1]
    batches = [[item.hash for item in run.tower.batches[0]] for run in (theirs, ours)]
    assert batches[0] == batches[1]


@LEVELS
@pytest.mark.parametrize("form", ["tensor", "list"])
def test_cached_rows_are_no_view_of_the_encoders_output(levels: int, form: str) -> None:
    class Overwriting(Tower):
        """Overwrites its last output before each call, and when it is told to."""

        last: Any = ()

        def get_image_feature(self, items: list[Any]) -> Any:
            self.overwrite()
            self.last = super().get_image_feature(items)
            return self.last

        def overwrite(self) -> None:
            for rows in self.last:
                rows.fill_(float("nan"))

    tower = Overwriting(levels, form)

    def steps() -> Steps:
        for k in (2, 3, 3):
            yield [images(k).window()]
            tower.overwrite()

    ours = play(plugged(), steps, tower)
    assert ours.is_right
    assert ours.encodes == [2, 3, 3]


@LEVELS
def test_step_changes_neither_features_nor_precomputed_rows(levels: int) -> None:
    items = [make_item(0, (2, 5)), make_item(1, (7, 9), modality=Modality.VIDEO), make_item(2, (11, 12))]
    items[2].precomputed_embeddings, items[2].feature = Tower(levels).rows(items[2]), None
    held = [item.feature if item.feature is not None else item.precomputed_embeddings for item in items]
    copies = [tensor.clone() for tensor in held]
    ours = play(plugged(), lambda: iter(Prompt(15, items).chunks(4, 5, 6)), Tower(levels))
    assert ours.is_right
    after = [item.feature if item.feature is not None else item.precomputed_embeddings for item in items]
    assert all(tensor is before for tensor, before in zip(after, held, strict=True))
    assert all(torch.equal(*pair) for pair in zip(held, copies, strict=True))


@LEVELS
def test_windows_before_between_and_behind_the_spans_of_a_video_encode_nothing(levels: int) -> None:
    def steps() -> Steps:
        prompt = Prompt(20, [make_item(7, (3, 6), (12, 15), modality=Modality.VIDEO)])
        for start, stop in ((0, 3), (7, 12), (16, 20)):
            yield [prompt.window(start, stop)]

    both(steps, lambda: RefusingTower(0, levels))


@LEVELS
@pytest.mark.parametrize("length", range(1, 8))
def test_windows_of_every_length_have_the_rows_of_the_whole_prompt(length: int, levels: int) -> None:
    def steps() -> Steps:
        items = [
            make_item(0, (2, 5)),
            make_item(1, (6, 8), (10, 11), modality=Modality.VIDEO),
            make_item(2, (13, 13)),
            make_item(3, (15, 18), (20, 22), modality=Modality.AUDIO),
        ]
        prompt = Prompt(25, items)
        for start in range(25):
            yield [prompt.window(start, min(25, start + length))]

    both(steps, lambda: Tower(levels))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_encoder_of_another_dtype_gives_the_rows_that_sglang_converts(dtype: torch.dtype) -> None:
    class Wide(Tower):
        def rows(self, item: Any) -> torch.Tensor:
            return (item.feature.float() @ self.weight).to(dtype)

    def steps() -> Steps:
        yield from images(3).chunks(10, 20, 35)

    theirs, ours = both(steps, Wide)
    assert ours.encodes == theirs.encodes


def test_pad_value_in_the_text_of_another_request_is_text() -> None:
    def step() -> Steps:
        prompt, other = images(1), Prompt(8, [make_item(1, (4, 5))])
        other.ids[2] = prompt.items[0].pad_value
        yield [other.window(), prompt.window()]

    theirs, ours = play(stock(), step), play(plugged(), step)
    assert not theirs.is_right
    assert ours.is_right


def test_identity_with_another_number_of_rows_is_encoded_again() -> None:
    def steps() -> Steps:
        for stop in (5, 6, 5, 6):
            item = make_item(stop, (2, stop))
            item.set_identity(bytes(range(32)))
            yield [Prompt(10, [item]).window()]

    theirs, ours = both(steps)
    assert theirs.encodes == [1, 2, 3, 4]
    assert ours.encodes == [1, 2, 2, 2]


def test_items_of_a_step_survive_a_cache_that_can_hold_one_of_them() -> None:
    def steps() -> Steps:
        for _ in range(2):
            yield [images(6, rows=10).window()]

    one_image = 10 * 32 * torch.bfloat16.itemsize
    theirs, ours = (play(side(one_image), steps) for side in (stock, plugged))
    assert theirs.is_right
    assert ours.is_right
    assert ours.encodes[0] == theirs.encodes[0] == 6
    assert ours.encodes[1] <= theirs.encodes[1]
