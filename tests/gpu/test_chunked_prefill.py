"""The prefill driver on a GPU: the logits of the unchunked stock model, features from pageable memory."""

from __future__ import annotations

import pytest
import torch
from caches import make_cache

pytest.importorskip("transformers")

from machine import Machine
from tiny_models import FAMILIES

from vitcache.adapters.transformers import ChunkedPrefill, image_items, vision_pipeline

pytestmark = pytest.mark.transformers


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN off TF32, which it takes or not by the number of patches: chunks and prompt differ in it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("encode_ahead", [False, True])
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_a_chat_in_chunks_with_features_on_the_cpu(gpu: Machine, name: str, encode_ahead: bool) -> None:
    family = FAMILIES[name]
    words = family.model()  # lengths of the items, found on the CPU
    model = family.model().to(gpu.device)
    cache = make_cache(500, width=family.row_width, device=gpu.device)
    with vision_pipeline(model, cache, max_rows_per_encode=8) as pipeline:
        driver = ChunkedPrefill(model, pipeline, 5, encode_ahead=encode_ahead)
        for turn in range(1, gpu.size(6, 3)):
            prompt = family.prompt(words, *range(turn))
            items = image_items(model, prompt["input_ids"], prompt["pixel_values"], prompt["image_grid_thw"])
            got = driver.prefill(prompt["input_ids"], items)
            with torch.no_grad():
                there = {name: value.to(gpu.device) for name, value in prompt.items()}
                wanted = model(**there).logits[:, -1]
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
            assert len(cache) == turn
