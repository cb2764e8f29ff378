"""The entries in device pages that vLLM's encoder cache shows."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
import torch
from vllm_scene.requests import make_settings

from vitcache.adapters.vllm.device_rows import DeviceRows
from vitcache.cache.embedding_cache import EmbeddingCache


def compactions_per_entry(num_pages: int, capacity: int) -> float:
    """Fill pages with entries of 40 to 70 pages in LRU order, and count the compactions after 300."""
    cache = EmbeddingCache(1, dtype=torch.float32, device="cpu", device_bytes=4 * num_pages, page_rows=1)
    on_device = DeviceRows(cache, lambda: None)
    chance = random.Random(0)
    entries: OrderedDict[bytes, int] = OrderedDict()
    number = 800
    for each in range(number):
        if each == 300:
            on_device.num_compactions = 0
        size = chance.randint(40, 70)
        for _ in range(2):
            if entries:
                entries.move_to_end(chance.choice(list(entries)[-50:]))
        while sum(entries.values()) + size > capacity:
            cache.discard(entries.popitem(last=False)[0])
        key = each.to_bytes(32, "big")
        reservation = on_device.reserve(key, size, 1, "")
        assert reservation is not None
        with reservation:
            reservation.write(torch.zeros(size, 1))
            reservation.commit()
        entries[key] = size
    return on_device.num_compactions / (number - 300)


def test_one_free_page_in_sixteen_makes_compactions_rare() -> None:
    settings = make_settings(4096, 0)
    assert settings.shown_pages == 3840
    assert compactions_per_entry(4096, settings.shown_pages) < 0.1
    assert compactions_per_entry(4096, 4096) > 0.3


@pytest.mark.parametrize(("device_pages", "shown_pages"), [(1, 1), (15, 15), (16, 15), (160, 150)])
def test_small_device_tiers_are_shown_whole(device_pages: int, shown_pages: int) -> None:
    assert make_settings(device_pages, 0).shown_pages == shown_pages


@pytest.mark.parametrize("num_pages", [1, 14, 15, 16, 17, 150, 4000])
def test_device_bytes_to_show_are_sufficient(num_pages: int) -> None:
    settings = make_settings(1, 0)
    sufficient = settings.device_bytes_to_show(num_pages) // settings.page_bytes
    assert num_pages <= make_settings(sufficient, 0).shown_pages <= num_pages + 1


def test_source_key_of_an_entry_is_the_same_before_while_and_after_it_is_shown() -> None:
    cache = EmbeddingCache(1, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=1)
    on_device = DeviceRows(cache, lambda: None)
    before = on_device.source_key("image")
    assert before != on_device.source_key("another image")
    cache.put(bytes(32), torch.zeros(4, 1))
    lease = cache.get(bytes(32))
    assert lease is not None
    on_device.show("image", bytes(32), lease)
    assert (on_device.source_key("image"), len(on_device.sources)) == (before, 1)
    on_device.release("image")
    assert (on_device.source_key("image"), len(on_device.sources)) == (before, 0)
