"""Images and videos that are patches with a grid `(t, h, w)`, as `Medium` objects."""

from __future__ import annotations

from math import prod

import torch
from tiny_family import END, IMAGE, START, VIDEO, Call, one_of, random_tensor

from tiny_zoo.configs import VIDEO_END, VIDEO_START
from tiny_zoo.zoo_model import Medium

IMAGES = (1, 4, 4), (1, 4, 6), (1, 2, 4)
CLIPS = (2, 4, 4), (3, 2, 4), (1, 4, 6)
WHOLE = 96
"""Elements of a patch of 4x4 pixels in 3 channels and 2 frames."""
STILL = (3, 4, 4)
"""A patch of one frame."""


def grid_images(*patch: int, grids: tuple[tuple[int, ...], ...] = IMAGES) -> Medium:
    """Images with patches of this shape."""

    def make(seed: int) -> Call:
        grid = one_of(seed, *grids)
        return {
            "pixel_values": random_tensor(seed, prod(grid), *patch),
            "image_grid_thw": torch.tensor([grid]),
        }

    return Medium(make)


def grid_videos(*patch: int, grids: tuple[tuple[int, ...], ...] = CLIPS) -> Medium:
    """Videos with patches of this shape. Each is one run of VIDEO tokens."""
    return Medium(lambda seed: _clip(seed, grids, *patch), token=VIDEO)


def frame_videos(*patch: int, grids: tuple[tuple[int, ...], ...] = CLIPS) -> Medium:
    """Videos of which each frame is a run of VIDEO tokens behind a timestamp."""

    def layout(call: Call, length: int) -> list[int]:
        frames = int(call["video_grid_thw"][0, 0])
        run = [START, *[VIDEO] * (length // frames), END]
        return [token for frame in range(frames) for token in (50 + frame, 60, *run)]

    return Medium(lambda seed: _clip(seed, grids, *patch), token=VIDEO, layout=layout)


def glm_videos(*patch: int, grids: tuple[tuple[int, ...], ...] = CLIPS) -> Medium:
    """Videos of which each frame is a run of IMAGE tokens before a timestamp."""

    def layout(call: Call, length: int) -> list[int]:
        frames = int(call["video_grid_thw"][0, 0])
        run = [START, *[IMAGE] * (length // frames), END]
        runs = [token for frame in range(frames) for token in (*run, 50 + frame)]
        return [VIDEO_START, *runs, VIDEO_END]

    return Medium(lambda seed: _clip(seed, grids, *patch), layout=layout)


def _clip(seed: int, grids: tuple[tuple[int, ...], ...], *patch: int) -> Call:
    grid = one_of(seed, *grids)
    return {
        "pixel_values_videos": random_tensor(1000 + seed, prod(grid), *patch),
        "video_grid_thw": torch.tensor([grid]),
    }
