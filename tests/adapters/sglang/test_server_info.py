"""`server_counts`: the counts of a scheduler as plain JSON, at any time."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang_fakes.model import HIDDEN, Model
from sglang_fakes.requests import Inputs, image
from sglang_fakes.scene import Scene, Window

import vitcache
from vitcache.adapters.sglang import service
from vitcache.adapters.sglang.counts import SglangStats
from vitcache.adapters.sglang.model_cache import StepShape
from vitcache.adapters.sglang.server_info import server_counts
from vitcache.cache.stats import CacheStats, TierStats

SHAPE = StepShape(HIDDEN, 0, torch.float32, torch.device("cpu"))
TIERS = {"device_bytes": 512, "host_bytes": 4096}


def scene(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Scene:
    made = Scene(monkeypatch, **options)
    monkeypatch.setattr(service, "SERVICE", made.service)
    return made


def names(owner: Any) -> set[str]:
    return {field.name for field in fields(owner)}


def step(made: Scene, seed: int = 1) -> None:
    made.step(Window(Inputs([image(seed, (1, 4))]), 0, 6))


def test_server_counts_is_what_json_reads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene(monkeypatch, **TIERS)
    for seed in (*range(12), 0):
        step(made, seed)
    found = server_counts()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"version", "is_disabled"} | names(SglangStats)
    assert [set(cache) for cache in found["caches"]] == [names(CacheStats)]


def test_server_counts_has_the_counts_of_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene(monkeypatch, **TIERS)
    for seed in (*range(12), 0):
        step(made, seed)
    found, stats = server_counts(), made.service.stats()
    [theirs], [cache] = found["caches"], stats.caches
    assert (found["version"], found["is_disabled"]) == (vitcache.__version__, False)
    assert (found["steps"], found["encodes"]) == (stats.steps, stats.encodes)
    assert 0 < theirs["demotions"] == cache.demotions
    assert theirs["device"] == {
        name: getattr(cache.device, name) for name in ("hits", "hit_bytes", "saved_ms")
    }
    assert theirs["host"]["hits"] == cache.host.hits > 0


def test_server_counts_has_the_counts_of_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = scene(monkeypatch, **TIERS, disk=str(tmp_path), disk_bytes=1 << 20, weights_name="v1")
    for _ in range(3):
        step(made)
    [cache] = made.service.models.caches
    assert cache.flush(60)
    found = server_counts()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    [disk] = found["caches"][0]["tiers"]
    assert set(disk) == names(TierStats)
    assert (disk["name"], disk["capacity_bytes"], disk["stored"], disk["is_open"]) == (
        "disk",
        1 << 20,
        1,
        False,
    )
    assert disk["own"]["entries"] == 1
    made.service.close()


def test_server_counts_before_the_first_step_has_the_cache_of_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = scene(monkeypatch, **TIERS)
    assert server_counts()["caches"] == []
    made.service.make_early(made.model, SHAPE)
    [early] = server_counts()["caches"]
    assert (early["device_capacity_bytes"], early["entries"]) == (512, 0)
    step(made)
    [used] = server_counts()["caches"]
    assert (used["device_capacity_bytes"], used["entries"]) == (512, 1)


def test_server_counts_while_disabled_says_so_and_keeps_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene(monkeypatch)
    step(made)
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    assert made.embed(Window(Inputs([image(1, (1, 4))]), 0, 6), ids=torch.zeros(6, dtype=torch.long)) is None
    found = server_counts()
    assert (found["is_disabled"], found["steps"], found["originals"]) == (True, 1, {"disabled": 1})
    assert [cache["entries"] for cache in found["caches"]] == [1]


def test_server_counts_leaves_out_a_cache_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene(monkeypatch)
    models = [made.model, Model(levels=1)]
    for model in models:
        made.model = model
        step(made)
    assert len(server_counts()["caches"]) == 2
    service.STOCK_CACHE.make(lambda size: None, 4096)
    step(made)
    assert len(server_counts()["caches"]) == 1
