"""`frames` counts the Python frames of a call; `host_time` measures the host's time to issue a placement."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch_version import HAS_EXCHANGE

from vitcache import EmbeddingCache, Span, content_key, scatter_embeddings
from vitcache.bench import frames


def test_count_frames_counts_only_frames_of_the_package() -> None:
    def call() -> None:
        torch.zeros(2).sum()
        content_key(b"feature")

    call()  # fills the caches of functions that the next calls do not enter
    counted = frames.count_frames(call)
    assert counted["keys/framing.py"] > 1
    assert all(file == "arguments.py" or file.startswith("keys/") for file in counted)
    assert frames.count_frames(call) == counted
    assert not frames.count_frames(lambda: torch.zeros(2).sum())


def test_count_frames_call_that_raises_restores_the_previous_profiler() -> None:
    def previous(*_: object) -> None: ...

    profiler_of_test = sys.getprofile()
    sys.setprofile(previous)
    try:
        with pytest.raises(ValueError, match="start"):
            frames.count_frames(lambda: Span(-1, 1))
        assert sys.getprofile() is previous
    finally:
        sys.setprofile(profiler_of_test)


def test_count_embed_hit_enters_few_frames_equal_for_every_number_of_items() -> None:
    counts = {count.call: count.by_file for count in frames.count_embed()}
    hits = [counts[f"embed, {items} hits"] for items in (1, 32, 512)]
    misses = [counts[f"embed, {items} missing"] for items in (1, 32, 512)]
    assert hits[0] == hits[1] == hits[2]
    assert hits[0].total() <= 45
    assert hits[0].total() < misses[0].total() < misses[1].total()
    assert "pipeline/encoder_runner.py" in misses[0].keys() - hits[0].keys()


def test_count_attach_hit_enters_fewer_frames_than_a_miss() -> None:
    pytest.importorskip("transformers")
    miss, hit = frames.count_attach()
    assert (miss.call, hit.call) == ("attach, 1 missing", "attach, 1 hit")
    assert 0 < hit.by_file.total() < miss.by_file.total()
    assert hit.by_file.total() <= (
        90 if HAS_EXCHANGE else 104
    )  # in Python 3.11, where comprehensions are frames
    assert hit.by_file["adapters/cached_encoder.py"] > 0


@pytest.mark.skipif(not HAS_EXCHANGE, reason="this torch has no DLPack exchange functions")
def test_scatter_of_a_lease_enters_as_few_frames_with_packed_levels_as_without() -> None:
    entries = {bytes(32): torch.ones(3, 4), bytes([1]) * 32: torch.ones(3, 8)}  # without a level, with one
    cache = EmbeddingCache(8, dtype=torch.float32, device="cpu", device_bytes=512, page_rows=4)
    for key, rows in entries.items():
        assert cache.put(key, rows)
    inputs_embeds, levels, spans = torch.zeros(1, 5, 4), torch.zeros(1, 3, 4), [Span(1, 3)]
    counts = []
    with torch.no_grad():
        for key, packed in zip(entries, (None, levels), strict=True):
            with cache.get(key) as lease:
                call = partial(scatter_embeddings, inputs_embeds, [lease], [spans], deepstack_rows=packed)
                counts.append(frames.count_frames(call))
    assert counts[0] == counts[1]
    assert counts[0].total() <= 12
    assert levels.sum() == 12


def test_host_time_without_a_gpu_prints_a_time_of_every_part() -> None:
    pytest.importorskip("triton")
    code = "from vitcache.bench import host_time; host_time.WARM_UP = host_time.REPEATS = 1; host_time.main()"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(("1 x 880", "512 x 64"))]
    for label in ("scatter, packed", "scatter, fresh leases", "embed, tensors", "    launch_scatter_rows"):
        rows = [line for line in lines if line.startswith(label)]
        assert len(rows) == 2, label
        assert all(float(number) > 0 for row in rows for number in row[28:].split())
