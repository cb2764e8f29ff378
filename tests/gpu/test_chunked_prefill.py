"""`ChunkedPrefill` on a GPU, with features in pageable memory, gives the logits of the stock model."""

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
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn TF32 off: cuDNN chooses it by the number of patches, so a chunk and the prompt may differ."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("encode_ahead", [False, True])
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_prefill_with_features_on_the_cpu_gives_the_stock_logits(
    gpu: Machine, name: str, encode_ahead: bool
) -> None:
    family = FAMILIES[name]
    cpu_model = family.model()  # encodes the pictures to find the number of rows of each
    model = family.model().to(gpu.device)
    cache = make_cache(500, width=family.row_width, device=gpu.device)
    with vision_pipeline(model, cache, max_rows_per_encode=8) as pipeline:
        driver = ChunkedPrefill(model, pipeline, 5, encode_ahead=encode_ahead)
        for turn in range(1, gpu.size(6, 3)):
            prompt = family.prompt(cpu_model, *range(turn))
            items = image_items(model, prompt["input_ids"], prompt["pixel_values"], prompt["image_grid_thw"])
            got = driver.prefill(prompt["input_ids"], items)
            with torch.no_grad():
                on_device = {name: value.to(gpu.device) for name, value in prompt.items()}
                wanted = model(**on_device).logits[:, -1]
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
            assert len(cache) == turn
