"""Which items share rows: SGLang names content by 64 bits without a shape, the plug-in by all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality
from sglang_scene.comparison import both, play
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import FEATURE_WIDTH, Prompt, Window, make_item
from sglang_scene.tower import Tower

Steps = Iterator[Sequence[Window]]


def colliding(num_rows: int, **data: Any) -> list[Any]:
    """Two items with one hash and other pixels. The second has `num_rows` rows and `data`."""
    first = make_item(0, (2, 5), grid=torch.tensor([1, 2, 2]))
    second = make_item(1, (8, 7 + num_rows), **{"grid": torch.tensor([1, 2, 2]), **data})
    second.set_hash(first.hash)
    return [first, second]


def test_equal_hash_and_other_pixels_give_each_item_its_own_rows() -> None:
    def steps() -> Steps:
        for _ in range(2):
            yield [Prompt(14, colliding(4)).window()]

    theirs, ours = (play(side, steps) for side in (stock(), plugged()))
    assert theirs.wrong_tokens == [[8, 9, 10, 11]] * 2
    assert ours.is_right
    assert ours.encodes == [2, 2]


def test_trusted_hash_gives_the_rows_of_sglang_without_hashing_pixels() -> None:
    def steps() -> Steps:
        for _ in range(2):
            yield [Prompt(14, colliding(4)).window()]

    theirs, ours = (play(side, steps) for side in (stock(), plugged(trust_engine_hash=True)))
    assert all(torch.equal(*pair) for pair in zip(theirs.rows, ours.rows, strict=True))
    assert ours.wrong_tokens == [[8, 9, 10, 11]] * 2
    assert ours.encodes == theirs.encodes == [1, 1]


@pytest.mark.parametrize("trusted", [False, True])
def test_equal_hash_and_other_grid_are_two_items(trusted: bool) -> None:
    def steps() -> Steps:
        for _ in range(2):
            yield [Prompt(14, colliding(4, grid=torch.tensor([1, 1, 4]))).window()]

    ours = play(plugged(trust_engine_hash=trusted), steps)
    assert ours.is_right
    assert ours.encodes == [2, 2]


def test_equal_hash_and_other_number_of_rows_are_encoded_once_each() -> None:
    def steps() -> Steps:
        for _ in range(2):
            yield [Prompt(14, colliding(5)).window()]

    theirs, ours = both(steps)
    assert theirs.encodes == [2, 3]  # its cache has one entry for both
    assert ours.encodes == [2, 2]


def test_trusted_hash_with_another_number_of_rows_is_encoded_once_each() -> None:
    def steps() -> Steps:
        for _ in range(2):
            yield [Prompt(14, colliding(5)).window()]

    ours = play(plugged(trust_engine_hash=True), steps)
    assert ours.is_right
    assert ours.encodes == [2, 2]


class ShapeTower(Tower):
    """Its rows depend on the shape of a feature, as those of a tower with positions do."""

    @staticmethod
    def feature(item: Any) -> torch.Tensor:
        return item.feature.reshape(-1, FEATURE_WIDTH) * len(item.feature)


def test_equal_bytes_of_another_shape_are_two_items() -> None:
    def steps() -> Steps:
        first, second = make_item(0, (2, 5)), make_item(0, (8, 11))
        second.feature = second.feature.reshape(2, -1)
        yield [Prompt(14, [first, second]).window()]

    theirs, ours = (play(side, steps, ShapeTower()) for side in (stock(), plugged()))
    assert theirs.wrong_tokens == [[8, 9, 10, 11]]
    assert ours.is_right
    assert ours.encodes == [2]


def test_equal_pixels_with_another_grid_are_two_items() -> None:
    class GridTower(Tower):
        """Its rows depend on the grid, as those of a tower with positions do."""

        @staticmethod
        def feature(item: Any) -> torch.Tensor:
            return item.feature * float(item.grid[1])

    def steps() -> Steps:
        grids = (torch.tensor([1, 2, 2]), torch.tensor([1, 4, 1]))
        for grid in (*grids, *grids):
            yield [Prompt(8, [make_item(0, (2, 5), grid=grid)]).window()]

    theirs, ours = (play(side, steps, GridTower()) for side in (stock(), plugged()))
    assert theirs.wrong_tokens == [[], [2, 3, 4, 5]] * 2
    assert ours.is_right
    assert ours.encodes == [1, 2, 2, 2]


def test_equal_bytes_of_another_dtype_are_two_items() -> None:
    def steps() -> Steps:
        first, second = make_item(0, (2, 5)), make_item(0, (8, 11))
        second.feature = second.feature.view(torch.int32)
        yield [Prompt(14, [first, second]).window()]

    theirs, ours = (play(side, steps) for side in (stock(), plugged()))
    assert not theirs.is_right
    assert ours.is_right


@pytest.mark.parametrize("other", [Modality.VIDEO, Modality.AUDIO])
@pytest.mark.parametrize("levels", [0, 2])
def test_equal_pixels_of_two_modalities_are_two_items(levels: int, other: Modality) -> None:
    class ModalityTower(Tower):
        """Its encoders of the modalities differ."""

        def rows(self, item: Any) -> torch.Tensor:
            return super().rows(item) * item.modality.value

    def steps() -> Steps:
        for _ in range(2):
            yield [Prompt(14, [make_item(0, (2, 5)), make_item(0, (8, 11), modality=other)]).window()]

    ours = play(plugged(), steps, ModalityTower(levels))
    assert ours.is_right
    assert ours.encodes == [2, 2]


def test_strided_pixels_share_the_rows_of_dense_ones() -> None:
    def steps() -> Steps:
        first, second = make_item(0, (2, 5)), make_item(0, (8, 11))
        second.feature = second.feature.t().contiguous().t()
        yield [Prompt(14, [first, second]).window()]

    _, ours = both(steps)
    assert ours.encodes == [1]


def test_identity_names_an_item_whatever_its_hash_is() -> None:
    def steps() -> Steps:
        first, second, third = (make_item(seed, (2, 5)) for seed in (0, 0, 1))
        first.set_identity(bytes(range(32)))
        second.set_identity(bytes(range(32)))
        third.set_identity(bytes(range(8)) + bytes(24))  # the same 64-bit hash
        yield [Prompt(10, [item]).window() for item in (first, second, third)]

    theirs, ours = (play(side, steps) for side in (stock(), plugged()))
    assert theirs.wrong_tokens == [[22, 23, 24, 25]]
    assert ours.is_right
    assert ours.encodes == [2]


def test_item_without_content_is_encoded_and_shared_with_no_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Opaque:
        """A feature that only the encoder can read."""

        def __init__(self, value: torch.Tensor) -> None:
            self.value = value

    class OpaqueTower(Tower):
        @staticmethod
        def feature(item: Any) -> torch.Tensor:
            return item.feature.value

    def steps() -> Steps:
        for _ in range(2):
            item = make_item(0, (2, 5), (8, 9))
            item.feature = Opaque(item.feature)
            yield from Prompt(12, [item]).chunks(4, 8)

    ours = play(plugged(), steps, OpaqueTower())
    assert ours.is_right
    assert ours.encodes == [1, 1, 2, 2]
    assert ours.stats.unshared == 2
    assert len([record for record in caplog.records if "trust_engine_hash" in record.message]) == 1
