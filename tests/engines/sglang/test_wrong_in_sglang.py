"""Steps in which SGLang 0.5.23 encodes again, writes wrong rows or raises: the plug-in is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality
from sglang_scene.comparison import both, play
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import Prompt, Window, images, make_item
from sglang_scene.tower import Tower

Steps = Iterator[Sequence[Window]]
LEVELS = pytest.mark.parametrize("levels", [0, 2])


def precomputed(seed: int, *offsets: tuple[int, int]) -> object:
    item = make_item(seed, *offsets)
    item.precomputed_embeddings, item.feature = Tower().rows(item), None
    return item


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])
@LEVELS
def test_multi_span_item_beside_single_span_ones_is_encoded_once(levels: int, modality: Modality) -> None:
    def turns() -> Steps:
        for k in (1, 2, 3):
            items = [make_item(10 + i, (20 + 10 * i, 24 + 10 * i), modality=modality) for i in range(k)]
            item = make_item(7, (3, 6), (9, 12), modality=modality)
            yield [Prompt(20 + 10 * k, [item, *items]).window()]

    theirs, ours = both(turns, lambda: Tower(levels))
    assert theirs.encodes == [2, 5, 9]
    assert ours.encodes == [2, 3, 4]


@LEVELS
def test_interleaved_spans_of_two_items_get_their_own_rows(levels: int) -> None:
    def step() -> Steps:
        yield [Prompt(20, [make_item(7, (3, 6), (15, 18)), make_item(8, (8, 12))]).window()]

    theirs, ours = (play(side, step, Tower(levels)) for side in (stock(), plugged()))
    # Items of two spans are joined first: SGLang writes 9 of 13 rows to the tokens of the other item.
    assert theirs.wrong_tokens == [[8, 9, 10, 11, 12, 15, 16, 17, 18]]
    assert ours.is_right
    assert ours.encodes == [2]


@LEVELS
def test_interleaved_spans_in_chunks_are_right_and_encoded_once(levels: int) -> None:
    def steps() -> Steps:
        items = [
            make_item(7, (3, 6), (15, 18), (27, 27)),
            make_item(8, (8, 12), (21, 25)),
            make_item(9, (13, 14), (19, 20)),
        ]
        yield from Prompt(30, items).chunks(5, 6, 7, 12)

    ours = play(plugged(), steps, Tower(levels))
    assert ours.is_right
    assert ours.encodes == [1, 2, 3, 3]


def test_item_without_offsets_is_left_out_and_the_request_is_served() -> None:
    def step() -> Steps:
        item = make_item(1, (9, 14))
        prompt = Prompt(16, [make_item(0, (2, 5)), item])
        item.offsets = None
        yield [prompt.window()]

    with pytest.raises(TypeError):
        play(stock(), step)
    ours = play(plugged(), step)
    assert ours.is_right
    assert (ours.encodes, ours.stats.errors) == ([1], 0)


def test_precomputed_request_beside_a_raw_one_is_right() -> None:
    def step() -> Steps:
        yield [Prompt(10, [precomputed(0, (2, 5))]).window(), Prompt(10, [make_item(1, (2, 5))]).window()]

    with pytest.raises(NotImplementedError):
        play(stock(), step)
    ours = play(plugged(), step)
    assert ours.is_right
    assert (ours.encodes, ours.stats.errors) == ([1], 0)


def test_precomputed_and_raw_items_of_one_request_are_right() -> None:
    def step() -> Steps:
        yield from Prompt(12, [precomputed(0, (2, 5)), make_item(1, (7, 9))]).chunks(4, 8)

    with pytest.raises(RuntimeError):
        play(stock(), step)
    ours = play(plugged(), step)
    assert ours.is_right
    assert (ours.encodes, ours.stats.errors) == ([0, 1], 0)


def test_short_encode_zeroes_its_rows_and_the_other_request_is_right(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def script() -> Steps:
        for _ in range(2):
            yield [Prompt(10, [make_item(0, (2, 5))]).window(), Prompt(10, [make_item(1, (2, 5))]).window()]

    def make() -> Tower:
        tower = Tower()
        tower.short = {make_item(0, (2, 5)).hash}
        return tower

    with pytest.raises(RuntimeError):
        play(stock(), script, make())
    ours = play(plugged(), script, make())
    assert ours.is_right
    assert not any(rows[2:6].any() for rows in ours.rows)
    # The second step encodes only the short item: its rows were not cached, those of the other image were.
    assert [item.hash for batch in ours.tower.batches[-1:] for item in batch] == list(ours.tower.short)
    assert ours.stats.errors == 2
    assert ours.stats.caches[0].entries == 1
    lines = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(lines) == 2
    assert "item 0 of request number 0 of a step" in lines[0].message
    assert "expected 4 rows, got 3" in lines[0].message


@LEVELS
def test_20_images_in_a_chunk_are_encoded_in_calls_of_64_rows(levels: int) -> None:
    def step() -> Steps:
        yield [images(20, rows=16, gap=4, first=0).window()]

    theirs = play(stock(), step, Tower(levels))
    ours = play(plugged(max_rows_per_encode=64), step, Tower(levels))
    assert (theirs.calls, theirs.tower.most_rows) == ([1], 320)
    assert (ours.calls, ours.tower.most_rows) == ([5], 64)
    assert ours.is_right
    assert torch.equal(ours.rows[0], theirs.rows[0])


def test_deepstack_image_and_plain_audio_in_one_request_are_right() -> None:
    def steps() -> Steps:
        items = [make_item(0, (2, 5)), make_item(1, (8, 9), modality=Modality.AUDIO), make_item(2, (11, 14))]
        prompt = partial(Prompt, 16, items)
        yield [prompt().window()]
        yield from prompt().chunks(4, 5, 7)

    theirs, ours = both(steps, lambda: Tower(2))
    assert ours.encodes == theirs.encodes == [3, 3, 3, 3]
