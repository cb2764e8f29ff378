"""`ChunkedPrefill` on a GPU, with features in pageable memory, gives the logits of the stock model."""

from __future__ import annotations

import pytest
import torch
from caches import make_cache

pytest.importorskip("transformers")

from machine import Machine
from prefill_scene import MEDIA, Scene
from tiny_models import FAMILIES

from vitcache.adapters.transformers import ChunkedPrefill, image_items, prefill_batch, vision_pipeline

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


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_batches_of_images_and_videos_give_the_stock_logits(gpu: Machine, name: str) -> None:
    scene = Scene(name)
    model = scene.family.model().to(gpu.device)
    cache = make_cache(800, width=scene.family.row_width, device=gpu.device)
    with vision_pipeline(model, cache, max_rows_per_encode=8) as pipeline:
        chats = [ChunkedPrefill(model, pipeline, 16) for _ in range(3)]
        for turn in range(1, gpu.size(5, 3)):
            prompts = [scene.family.mixed_prompt(*media) for media in (MEDIA[:turn], [], MEDIA[-turn:])]
            items = [scene.items(prompt) for prompt in prompts]
            for token in (None, 7):  # the turn, and a decoded token
                if token is not None:
                    prompts = [scene.longer(prompt, token) for prompt in prompts]
                result = prefill_batch(chats, [prompt["input_ids"] for prompt in prompts], items)
                assert not result.errors
                wanted = torch.cat([scene.stock_logits(prompt)[:, -1] for prompt in prompts])
                tolerance = 1e-4 * float(wanted.abs().max())
                torch.testing.assert_close(result.logits.cpu(), wanted, rtol=0, atol=tolerance)
