"""docs/sizing.md: its code, its formula and its table of signs, compared with a cache."""

from __future__ import annotations

import io
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from vitcache import CacheStats, EmbeddingCache
from vitcache.bench.traffic.trace_file import load_trace

PAGE = (Path(__file__).parents[1] / "docs/sizing.md").read_text()
COUNTERS = {field.name for field in fields(CacheStats)}


def make_cache(device_pages: int, host_pages: int = 0) -> EmbeddingCache:
    """A cache on the CPU; a page has two rows of 8 bytes."""
    return EmbeddingCache(
        2,
        dtype=torch.float32,
        device="cpu",
        device_bytes=16 * device_pages,
        host_bytes=16 * host_pages,
        page_rows=2,
    )


def put_all(cache: EmbeddingCache, images: int) -> None:
    for number in range(images):
        cache.put(bytes([number]) * 32, torch.ones(2, 2))


def test_code_of_the_page_writes_a_trace_that_the_command_reads(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    file = io.StringIO()
    for image in (b"cat", b"dog", b"cat"):
        names["record"](file, image, 405)  # type: ignore[operator]
    path = tmp_path / "requests.jsonl"
    path.write_text(file.getvalue())
    assert [json.loads(line)["tokens"] for line in path.read_text().splitlines()] == [405] * 3
    trace = load_trace(path)
    assert len({access.key for access in trace}) == 2


@pytest.mark.parametrize(("rows", "page_rows"), [(1, 16), (16, 16), (17, 16), (3, 2)])
def test_formula_of_an_entry_is_the_memory_that_it_takes(rows: int, page_rows: int) -> None:
    entry = -(-rows // page_rows) * page_rows * 2 * 4
    cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=4 * entry, page_rows=page_rows)
    assert cache.put(bytes(32), torch.ones(rows, 2))
    assert cache.stats().device_bytes == entry


def test_signs_of_the_page_are_counters_of_the_cache() -> None:
    signs = PAGE[PAGE.index("| sign |") :]
    named = set(
        re.findall(r"`([a-z_]+)`", " ".join(line.split("|")[1] for line in signs.splitlines() if "|" in line))
    )
    assert named
    assert named <= COUNTERS


def test_cache_that_is_too_small_evicts_and_misses_images_that_were_sent_before() -> None:
    cache = make_cache(2)
    for _ in range(2):
        for number in range(3):
            key = bytes([number]) * 32
            lease = cache.get(key)
            if lease is None:
                cache.put(key, torch.ones(2, 2))
            else:
                lease.release()
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (0, 6)
    assert stats.evictions == 4


def test_small_device_tier_above_a_host_tier_demotes() -> None:
    cache = make_cache(1, host_pages=4)
    put_all(cache, 3)
    assert cache.stats().demotions == 2
    assert cache.stats().evictions == 0


def test_image_that_is_larger_than_the_tier_is_rejected() -> None:
    cache = make_cache(1)
    assert not cache.put(bytes(32), torch.ones(3, 2))
    assert cache.stats().rejections == 1


def test_device_tier_without_a_page_raises_value_error() -> None:
    with pytest.raises(ValueError, match="device_bytes"):
        make_cache(0)
