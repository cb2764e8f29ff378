"""`ChunkedPrefill` over tiers: the images of a prompt are fetched before its first chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import make_cache

pytest.importorskip("transformers")

from prefill_scene import Scene

from vitcache import Namespace, WriteBack
from vitcache.adapters.transformers import ChunkedPrefill, prefill_batch, vision_pipeline
from vitcache.tiers import MemoryTier

pytestmark = pytest.mark.transformers

SECONDS = 60


def over(tier: Any, scene: Scene) -> Any:
    """A pipeline over a tier, as after a restart."""
    options = {"weights_name": "tests", "write_back": WriteBack(hits=0), "fetch_timeout_s": SECONDS}
    cache = make_cache(400, 400, width=scene.family.row_width, tiers=[tier], **options)
    scene.pipeline.close()
    return vision_pipeline(scene.model, cache, max_rows_per_encode=1, namespace=Namespace("tests"))


@pytest.mark.parametrize("is_batch", [False, True], ids=["one prompt", "a batch"])
def test_a_prompt_after_a_restart_encodes_nothing(is_batch: bool) -> None:
    tier, logits, encodes = MemoryTier(1 << 20), [], []
    for _ in range(2):
        scene = Scene("qwen2_5_vl")
        with over(tier, scene) as pipeline:
            prompts = [scene.prompt(("image", 0), ("image", 1)), scene.prompt(("image", 2))]
            chats = [ChunkedPrefill(scene.model, pipeline, 8) for _ in prompts]
            ids, items = [prompt["input_ids"] for prompt, _ in prompts], [items for _, items in prompts]
            if is_batch:
                logits.append(prefill_batch(chats, ids, items).logits)
            else:
                given = zip(chats, ids, items, strict=True)
                logits.append(torch.cat([chat.prefill(*prompt) for chat, *prompt in given]))
            encodes.append(scene.tower.take())
            assert pipeline.cache.flush(SECONDS)
            pipeline.cache.close()
    assert encodes == [3, 0]
    assert torch.equal(*logits)
    assert logits[0].isfinite().all()


def test_fetch_is_off_while_vitcache_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    tier, scene = MemoryTier(1 << 20), Scene("qwen2_5_vl")
    with over(tier, scene) as pipeline:
        prompt, items = scene.prompt(("image", 0))
        chat = ChunkedPrefill(scene.model, pipeline, 64)
        monkeypatch.setenv("VITCACHE_DISABLE", "1")
        chat.prefill(prompt["input_ids"], items)
        assert pipeline.cache.stats().tiers[0].misses == 0
        monkeypatch.delenv("VITCACHE_DISABLE")
        chat.reset()
        chat.prefill(prompt["input_ids"], items)
        assert pipeline.cache.stats().tiers[0].misses == 1
        pipeline.cache.close()
