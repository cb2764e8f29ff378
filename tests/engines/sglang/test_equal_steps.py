"""Steps that SGLang computes rightly: with the plug-in, each row has the same bits, with equal encodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality
from sglang_scene.comparison import both
from sglang_scene.prompts import Prompt, Window, images, make_item
from sglang_scene.tower import Tower

Steps = Iterator[Sequence[Window]]


def turns(num_turns: int) -> Steps:
    """One new image a turn; no turn uses the KV cache of an earlier one."""
    for k in range(1, num_turns + 1):
        yield [images(k).window()]


@pytest.mark.parametrize("form", ["tensor", "list", "3-D"])
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_turns_with_one_new_image_each_encode_one_image_each(levels: int, form: str) -> None:
    theirs, ours = both(partial(turns, 4), lambda: Tower(levels, form))
    assert ours.encodes == theirs.encodes == [1, 2, 3, 4]


@pytest.mark.parametrize("form", ["tensor", "list", "3-D"])
@pytest.mark.parametrize("levels", [0, 2])
def test_chunks_that_cut_images_encode_each_image_once(levels: int, form: str) -> None:
    def chunks() -> Steps:
        prompt = Prompt(30, [make_item(0, (2, 5)), make_item(1, (9, 14)), make_item(2, (20, 24))])
        yield from prompt.chunks(8, 8, 8, 6)

    theirs, ours = both(chunks, lambda: Tower(levels, form))
    assert ours.encodes == theirs.encodes == [1, 2, 3, 3]


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("levels", [0, 2])
def test_text_requests_between_and_padding_behind_keep_their_rows(levels: int, padding: int) -> None:
    def step() -> Steps:
        first, last = Prompt(10, [make_item(0, (2, 5))]), Prompt(12, [make_item(1, (3, 8))])
        yield [first.window(), Prompt(7).window(), last.window()]

    both(step, lambda: Tower(levels), padding=padding)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_video_of_three_spans_and_an_image_in_chunks_are_encoded_once(levels: int) -> None:
    def chunks() -> Steps:
        video = make_item(7, (3, 6), (9, 12), (15, 18), modality=Modality.VIDEO)
        yield from Prompt(30, [video, make_item(8, (22, 25))]).chunks(8, 8, 14)

    theirs, ours = both(chunks, lambda: Tower(levels))
    assert ours.encodes == theirs.encodes == [1, 1, 2]


def test_audio_of_several_runs_over_chunks_and_turns_is_encoded_once() -> None:
    def steps() -> Steps:
        clip = partial(make_item, 7, (2, 3), (6, 7), (10, 11), modality=Modality.AUDIO)
        prompt = Prompt(22, [clip()])
        yield from prompt.chunks(7, 6)
        yield [Prompt(22, [clip(), make_item(8, (14, 15), (18, 19), modality=Modality.AUDIO)]).window()]

    theirs, ours = both(steps)
    assert ours.encodes == theirs.encodes == [1, 1, 2]


def test_features_in_numpy_reach_the_encoder_as_numpy() -> None:
    def step() -> Steps:
        item = make_item(0, (2, 5))
        item.feature = item.feature.numpy()
        yield [Prompt(16, [item, make_item(1, (9, 14))]).window()]

    _, ours = both(step)
    [batch] = ours.tower.batches
    assert isinstance(batch[0].feature, np.ndarray)


def test_features_in_a_list_reach_the_encoder_as_a_list() -> None:
    def steps() -> Steps:
        item = make_item(0, (2, 7))
        item.feature = list(item.feature.split([2, 4]))
        yield from Prompt(16, [item, make_item(1, (9, 14))]).chunks(5, 11)

    theirs, ours = both(steps)
    assert isinstance(ours.tower.batches[0][0].feature, list)
    assert ours.encodes == theirs.encodes == [1, 2]


def test_same_image_in_two_requests_is_encoded_once() -> None:
    def step() -> Steps:
        yield [Prompt(10, [make_item(0, (2, 5))]).window(), Prompt(10, [make_item(0, (4, 7))]).window()]

    theirs, ours = both(step)
    assert ours.encodes == theirs.encodes == [1]


@pytest.mark.parametrize(("start", "stop"), [(6, 10), (0, 2), (3, 3)])
@pytest.mark.parametrize("levels", [0, 2])
def test_window_without_tokens_of_images_encodes_nothing(levels: int, start: int, stop: int) -> None:
    def step() -> Steps:
        # The second request is not empty, as no batch of SGLang is.
        yield [Prompt(10, [make_item(0, (2, 5))]).window(start, stop), Prompt(4).window()]

    theirs, ours = both(step, lambda: Tower(levels))
    assert ours.encodes == theirs.encodes == [0]


@pytest.mark.parametrize("kind", ["3-D", "float32", "3-D float32"])
def test_precomputed_rows_in_chunks_are_placed_without_an_encode(kind: str) -> None:
    def steps() -> Steps:
        item = make_item(0, (2, 5))
        rows = Tower().rows(item)
        rows = rows.float() + 2**-12 if "float32" in kind else rows
        item.precomputed_embeddings = rows.reshape(2, 2, -1) if "3-D" in kind else rows
        item.feature = None
        yield from Prompt(10, [item]).chunks(4, 6)

    theirs, ours = both(steps)
    assert ours.encodes == theirs.encodes == [0, 0]


def test_precomputed_rows_with_deepstack_fill_every_level() -> None:
    def steps() -> Steps:
        item = make_item(0, (2, 5))
        item.precomputed_embeddings, item.feature = Tower(2).rows(item), None
        yield from Prompt(10, [item]).chunks(4, 6)

    both(steps, lambda: Tower(2))


@pytest.mark.parametrize("levels", [0, 2])
def test_steps_in_inference_mode_and_outside_share_rows(levels: int) -> None:
    def steps() -> Steps:
        for k in (1, 2, 3, 3):
            with torch.inference_mode(k % 2 == 1):
                prompt = images(k)
                yield prompt.chunks(10, len(prompt) - 10)[0]
                yield prompt.chunks(10, len(prompt) - 10)[1]

    theirs, ours = both(steps, lambda: Tower(levels))
    assert ours.encodes == theirs.encodes
