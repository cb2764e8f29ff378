"""`image_items` and `video_items`: one item per image and video, with its patches, tokens and grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from tiny_models import FAMILIES, GRID_FAMILIES, Call

from vitcache import Item
from vitcache.adapters.transformers import image_items, video_items

pytestmark = pytest.mark.transformers

each_grid_family = pytest.mark.parametrize("name", GRID_FAMILIES)
MEDIA = ("image", 0), ("video", 0), ("video", 1), ("image", 1), ("video", 2)
KEYS = [bytes([number]) * 32 for number in range(4)]


def images_of(model: Any, prompt: Call, **options: Any) -> list[Item]:
    names = "input_ids", "pixel_values", "image_grid_thw"
    return image_items(model, *(prompt[name] for name in names), **options)


def videos_of(model: Any, prompt: Call, **options: Any) -> list[Item]:
    names = "input_ids", "pixel_values_videos", "video_grid_thw"
    options = {"second_per_grid_ts": prompt.get("second_per_grid_ts"), **options}
    return video_items(model, *(prompt[name] for name in names), **options)


@each_grid_family
def test_items_of_a_mixed_prompt_have_their_tokens_patches_and_grids(name: str) -> None:
    family = GRID_FAMILIES[name]
    model, prompt = family.model(), family.mixed_prompt(*MEDIA)
    images, videos = images_of(model, prompt), videos_of(model, prompt)
    types = prompt["mm_token_type_ids"][0]
    for kind, items in ((1, images), (2, videos)):
        tokens = [token for item in items for span in item.spans for token in range(span.start, span.stop)]
        assert tokens == (types == kind).nonzero()[:, 0].tolist()
    assert [item.encoder_kwargs for item in images] == [{"grid_thw": [1, 4, 4]}, {"grid_thw": [1, 4, 6]}]
    grids = [item.encoder_kwargs["video_grid_thw"] for item in videos]
    assert grids == [[2, 4, 4], [3, 2, 4], [1, 4, 6]]
    assert all(type(number) is int for grid in grids for number in grid)
    assert [item.num_rows for item in images] == [4, 6]
    assert [item.num_rows for item in videos] == [8, 6, 6]
    frames = [[8], [6], [6]] if name in ("qwen2_vl", "qwen2_5_vl") else [[4, 4], [2, 2, 2], [6]]
    assert [[span.length for span in item.spans] for item in videos] == frames
    for item in (*images, *videos):
        assert [span.source_start for span in item.spans] == [
            sum(span.length for span in item.spans[:position]) for position in range(len(item.spans))
        ]
    for items, pixels in ((images, prompt["pixel_values"]), (videos, prompt["pixel_values_videos"])):
        assert torch.equal(torch.cat([item.feature for item in items]), pixels)
        assert items[0].feature.data_ptr() == pixels.data_ptr()
    seconds = [item.encoder_kwargs.get("second_per_grid_t") for item in videos]
    assert seconds == ([0.5, 2.0, pytest.approx(1.3)] if family.has_seconds else [None] * 3)


@each_grid_family
def test_items_of_one_dimension_and_without_any_image_or_video(name: str) -> None:
    family = GRID_FAMILIES[name]
    model, prompt = family.model(), family.mixed_prompt(*MEDIA)
    flat = prompt | {"input_ids": prompt["input_ids"][0]}
    assert [item.spans for item in images_of(model, flat)] == [i.spans for i in images_of(model, prompt)]
    assert [item.spans for item in videos_of(model, flat)] == [i.spans for i in videos_of(model, prompt)]
    text, grids = torch.arange(1, 9), torch.zeros(0, 3, dtype=torch.int64)
    assert image_items(model, text, torch.zeros(0, 96), grids) == []
    assert video_items(model, text, torch.zeros(0, 96), grids) == []


def test_given_keys_and_complete_keys_are_those_of_the_items() -> None:
    family = GRID_FAMILIES["glm4v"]
    model, prompt = family.model(), family.mixed_prompt(*MEDIA)
    for items in (
        images_of(model, prompt, keys=KEYS[:2], complete_keys=True),
        videos_of(model, prompt, keys=KEYS[:3], complete_keys=True),
    ):
        assert [item.key for item in items] == KEYS[: len(items)]
        assert all(item.complete_key for item in items)
    assert [item.key for item in videos_of(model, prompt)] == [None] * 3


def test_video_seconds_are_floats_of_any_sequence_or_tensor() -> None:
    family = GRID_FAMILIES["qwen2_5_vl"]
    model, prompt = family.model(), family.mixed_prompt(("video", 0), ("video", 1))
    for seconds in ([1, 0.5], (1.0, 0.5), np.array([1, 0.5]), torch.tensor([1, 0.5])):
        items = videos_of(model, prompt, second_per_grid_ts=seconds)
        found = [item.encoder_kwargs["second_per_grid_t"] for item in items]
        assert found == [1.0, 0.5]
        assert all(type(number) is float for number in found)
    items = videos_of(model, prompt, second_per_grid_ts=None)
    assert all("second_per_grid_t" not in item.encoder_kwargs for item in items)


@pytest.mark.parametrize(
    ("seconds", "error", "message"),
    [
        ([1.0], ValueError, "must have one number per video: expected 2, got 1"),
        (torch.ones(3), ValueError, "must have one number per video: expected 2, got 3"),
        ([1.0, True], TypeError, r"second_per_grid_ts\[1\] must be a number, got True of type bool"),
        ([1.0, None], TypeError, r"second_per_grid_ts\[1\] must be a number, got None of type NoneType"),
        (torch.tensor([True, True]), TypeError, r"second_per_grid_ts\[0\] must be a number, got True"),
        ([float("nan"), 1], ValueError, r"second_per_grid_ts\[0\] must be finite and at least 0, got nan"),
        ([1, -0.5], ValueError, r"second_per_grid_ts\[1\] must be finite and at least 0, got -0.5"),
        (1.0, TypeError, "second_per_grid_ts must be a sequence or a tensor of numbers, got float"),
        (torch.tensor(1.0), TypeError, "second_per_grid_ts must be a sequence or a tensor of numbers"),
        ("12", TypeError, "second_per_grid_ts must be a sequence or a tensor of numbers, got str"),
    ],
)
def test_wrong_seconds_of_videos_raise(seconds: Any, error: type[Exception], message: str) -> None:
    family = GRID_FAMILIES["qwen2_5_vl"]
    prompt = family.mixed_prompt(("video", 0), ("video", 1))
    with pytest.raises(error, match=message):
        videos_of(family.model(), prompt, second_per_grid_ts=seconds)


@pytest.mark.parametrize("name", sorted(set(GRID_FAMILIES) - {"qwen2_5_vl"}))
def test_seconds_of_videos_are_refused_where_positions_ignore_them(name: str) -> None:
    family = GRID_FAMILIES[name]
    with pytest.raises(ValueError, match=f"is for qwen2_5_vl: the positions of {name} do not depend on it"):
        videos_of(family.model(), family.mixed_prompt(("video", 0)), second_per_grid_ts=[1.0])


@each_grid_family
def test_wrong_number_of_tokens_raises_with_both_numbers(name: str) -> None:
    family = GRID_FAMILIES[name]
    model, prompt = family.model(), family.mixed_prompt(*MEDIA)
    is_glm = family.is_glm
    types = prompt["mm_token_type_ids"]
    for make, kind, token_id, place, rows in (
        (images_of, 1, 90, " outside of videos" if is_glm else "", 10),
        (videos_of, 2, 90 if is_glm else 91, " in videos" if is_glm else "", 20),
    ):
        ids = prompt["input_ids"].clone()
        ids[0, (types[0] == kind).nonzero()[0]] = 7
        count = 2 if kind == 1 else 3
        message = f"{rows - 1} tokens with id {token_id}{place}, the {count} items have {rows} rows"
        with pytest.raises(ValueError, match=message):
            make(model, prompt | {"input_ids": ids})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"video_grid_thw": [[2, 4, 4]]}, TypeError, "video_grid_thw must be a tensor, got list"),
        ({"video_grid_thw": None}, TypeError, "video_grid_thw must be a tensor, got NoneType"),
        (
            {"video_grid_thw": torch.ones(1, 3)},
            TypeError,
            "video_grid_thw must be a tensor of ints, got torch.f",
        ),
        ({"video_grid_thw": torch.ones(1, 3) > 0}, TypeError, "must be a tensor of ints, got torch.bool"),
        (
            {"video_grid_thw": torch.tensor([2, 4, 4])},
            ValueError,
            r"must have shape \(items, 3\), got \(3,\)",
        ),
        (
            {"video_grid_thw": torch.tensor([[2, 4]])},
            ValueError,
            r"must have shape \(items, 3\), got \(1, 2\)",
        ),
        (
            {"video_grid_thw": torch.tensor([[0, 4, 4]])},
            ValueError,
            r"\[0\] must have three numbers of at least 1",
        ),
        (
            {"video_grid_thw": torch.tensor([[2, 1, 16]])},
            ValueError,
            r"h and w of .*\[0\] must be multiples of 2",
        ),
        (
            {"video_grid_thw": torch.tensor([[1, 4, 4]])},
            ValueError,
            "must have 16 patches for this .*, got 32",
        ),
        ({"pixel_values_videos": None}, TypeError, "pixel_values_videos must be a tensor, got NoneType"),
        (
            {"pixel_values_videos": torch.tensor(1.0)},
            ValueError,
            "must have 32 patches for this .*, got a number",
        ),
        ({"input_ids": [1, 2]}, TypeError, "input_ids must be a tensor, got list"),
        ({"input_ids": torch.ones(4)}, TypeError, "input_ids must be a tensor of ints, got torch.float32"),
        (
            {"input_ids": torch.ones(2, 4).long()},
            ValueError,
            r"shape \(tokens,\) or \(1, tokens\), got \(2, 4\)",
        ),
        ({"keys": KEYS[:2]}, ValueError, "keys must have one key per video: expected 1, got 2"),
        ({"keys": [b"short"]}, ValueError, r"keys\[0\] has 5 bytes, it must have 32"),
        ({"keys": [3]}, TypeError, r"keys\[0\] must be bytes, got int"),
        ({"complete_keys": True}, ValueError, "complete_keys is True, but keys is None"),
        ({"complete_keys": 1, "keys": KEYS[:1]}, TypeError, "complete_keys must be a bool, got int"),
    ],
)
def test_wrong_arguments_of_video_items_raise(change: Call, error: type[Exception], message: str) -> None:
    family = GRID_FAMILIES["qwen3_vl"]
    prompt = family.mixed_prompt(("video", 0))
    arguments = {name: prompt[name] for name in ("input_ids", "pixel_values_videos", "video_grid_thw")}
    with pytest.raises(error, match=message):
        video_items(family.model(), **arguments | change)


def test_items_of_a_family_without_grids_are_refused_by_name() -> None:
    model, one = FAMILIES["internvl"].model(), torch.ones(1, 3, dtype=torch.int64)
    for make in (image_items, video_items):
        with pytest.raises(
            TypeError, match=r"model type 'internvl'\) cannot be put on a pipeline; .*glm_ocr$"
        ):
            make(model, one[0], torch.zeros(1, 96), one)
