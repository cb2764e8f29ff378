"""Small caches: the plug-in encodes as rarely as SGLang, or more rarely."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch
from sglang_scene.comparison import play
from sglang_scene.language_model import HIDDEN
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import Prompt, Window, images, make_item
from sglang_scene.tower import Tower

Steps = Iterator[Sequence[Window]]
IMAGE_ROWS = 40
IMAGE_BYTES = IMAGE_ROWS * HIDDEN * torch.bfloat16.itemsize


def prompt_twice() -> Steps:
    """A prompt of 4 images in chunks of 16 tokens, in two requests."""
    for _ in range(2):
        prompt = images(4, rows=IMAGE_ROWS, gap=10)
        full, rest = divmod(len(prompt), 16)
        yield from prompt.chunks(*[16] * full, *([rest] if rest else []))


def cold_and_again(encodes: list[int]) -> tuple[int, int]:
    cold = encodes[len(encodes) // 2 - 1]
    return cold, encodes[-1] - cold


def test_cache_smaller_than_an_image_encodes_each_image_once_per_request() -> None:
    theirs = play(stock(IMAGE_BYTES - 1), prompt_twice)
    ours = play(plugged(IMAGE_BYTES - 1), prompt_twice)
    # SGLang encodes an image in each chunk that it overlaps.
    assert cold_and_again(theirs.encodes) == (14, 14)
    assert cold_and_again(ours.encodes) == (4, 4)
    assert theirs.is_right
    assert ours.is_right
    assert ours.stats.caches[0].device_capacity_bytes <= IMAGE_BYTES - 1


@pytest.mark.parametrize(("num_images", "again"), [(1, 4), (2, 4), (3, 4), (4, 0)])
def test_cache_of_some_images_bytes_encodes_as_often_as_sglang(num_images: int, again: int) -> None:
    num_bytes = num_images * IMAGE_BYTES
    theirs, ours = (play(side(num_bytes), prompt_twice) for side in (stock, plugged))
    assert cold_and_again(theirs.encodes) == cold_and_again(ours.encodes) == (4, again)
    assert ours.is_right
    assert ours.stats.caches[0].device_capacity_bytes == num_bytes


def random_requests(seed: int, num_steps: int) -> Steps:
    """Requests of 1 to 5 images of 1 to 9 rows, from 108 images, and requests of text."""
    rng = random.Random(seed)
    for _ in range(num_steps):
        windows = []
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.25:
                windows.append(Prompt(rng.randint(1, 20)).window())
                continue
            position, items = rng.randint(0, 3), []
            for _ in range(rng.randint(1, 5)):
                rows = rng.randint(1, 9)
                items.append(make_item(rng.randint(0, 11) * 10 + rows, (position, position + rows - 1)))
                position += rows + rng.randint(0, 4)
            prompt = Prompt(position + rng.randint(0, 3), items)
            start = rng.randrange(len(prompt))
            windows.append(prompt.window(start, rng.randint(start + 1, len(prompt))))
        yield windows


def test_cache_of_16_kib_encodes_no_more_than_sglang_over_150_steps() -> None:
    theirs, ours = (play(side(16 << 10), partial(random_requests, 3, 150)) for side in (stock, plugged))
    assert theirs.is_right
    assert ours.is_right
    assert ours.encodes[-1] <= theirs.encodes[-1]
    assert ours.stats.caches[0].device_capacity_bytes <= 16 << 10


@pytest.mark.parametrize("seed", [5, 6, 12])
def test_cache_of_16_kib_encodes_within_1_percent_of_sglang(seed: int) -> None:
    # Both evict the least recently used image. Inside of a step, the plug-in evicts none that the step uses.
    theirs, ours = (play(side(16 << 10), partial(random_requests, seed, 150)) for side in (stock, plugged))
    assert ours.is_right
    assert ours.encodes[-1] <= 1.01 * theirs.encodes[-1]


def test_reserved_bytes_are_the_cache_and_sglangs_own_has_none() -> None:
    from sglang.srt.managers import mm_schedule

    def step() -> Steps:
        yield [images(3).window()]
        assert mm_schedule.embedding_cache.max_size == 0
        assert not len(mm_schedule.embedding_cache)

    ours = play(plugged(1 << 20), step)
    assert ours.stats.caches[0].device_capacity_bytes == 1 << 20


def test_no_reserved_bytes_give_100_mib_and_device_bytes_decides() -> None:
    def step() -> Steps:
        yield [images(1).window()]

    default = play(plugged(0), step)
    chosen = play(plugged(0, device_bytes="1MiB", host_bytes=1 << 20), step)
    assert default.stats.caches[0].device_capacity_bytes == 100 << 20
    assert chosen.stats.caches[0].device_capacity_bytes == 1 << 20
    assert chosen.stats.caches[0].host_capacity_bytes == 1 << 20


def test_new_cache_of_sglang_gives_the_plugin_a_new_cache_of_its_size() -> None:
    from sglang.srt.managers import mm_schedule

    def steps() -> Steps:
        yield [images(2).window()]
        mm_schedule.init_mm_embedding_cache(1 << 19)
        yield [images(2).window()]

    ours = play(plugged(1 << 20), steps, Tower())
    assert ours.encodes == [2, 4]
    assert [cache.device_capacity_bytes for cache in ours.stats.caches] == [1 << 19]


def test_host_tier_keeps_the_images_that_the_device_tier_evicts() -> None:
    ours = play(plugged(IMAGE_BYTES, host_bytes=4 * IMAGE_BYTES), prompt_twice)
    assert ours.is_right
    assert cold_and_again(ours.encodes) == (4, 0)
    assert ours.stats.caches[0].host.hits > 0
