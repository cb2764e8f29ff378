"""A chat with one new image per turn: the model, the prompts, the items, and a tower that counts images."""

from __future__ import annotations

from functools import cache, cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from vitcache import Item, Span
from vitcache.bench.harness.timing import TimedBlock
from vitcache.bench.traffic.simulation import PAGE_ROWS

TEXT_TOKENS = 16  # before each image, and again after it
PATCHES_PER_ROW = 4


@cache
def load_model(size: str, device: torch.device) -> Any:
    """Build Qwen3-VL with random weights; `size` is ``"8b"`` or ``"tiny"``, as in `vitcache.demo.model`."""
    from vitcache.demo.model import SIZES, build_model

    return build_model(SIZES[size], device)


class Tower:
    """The model's vision encoder; counts its images and times its calls."""

    def __init__(self, model: Any) -> None:
        from vitcache.adapters.transformers import image_encoder

        self._encode = image_encoder(model)
        self._device = model.device
        self.images = 0
        self.calls: list[TimedBlock] = []

    def __call__(self, features: list[Tensor], items: list[Item]) -> Tensor:
        self.images += len(items)
        with torch.profiler.record_function("ViT"), TimedBlock(self._device) as call:
            rows = self._encode(features, items)
        self.calls.append(call)
        return rows

    def take_counts(self) -> tuple[list[TimedBlock], int]:
        """Return the calls and the number of images since the last `take_counts`, and reset both."""
        counts = self.calls, self.images
        self.calls, self.images = [], 0
        return counts


class Chat:
    """Prompts and items of a chat that shows `images` images of one size, one image per turn.

    The features are float32 patches in pageable memory. With `share_feature` all images share one feature
    tensor but have different keys; use it for chats whose features do not fit in memory.
    """

    def __init__(
        self, model: Any, grid: tuple[int, int, int], images: int, *, share_feature: bool = False
    ) -> None:
        vision = model.config.vision_config
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        self.model, self.grid, self.images = model, grid, images
        self.rows = prod(grid) // PATCHES_PER_ROW
        self.weight = model.get_input_embeddings().weight
        self.levels = len(vision.deepstack_visual_indexes)
        self.row_width = self.weight.shape[1] * (1 + self.levels)
        self.features = [torch.randn(prod(grid), width) for _ in range(1 if share_feature else images)]
        self.tokens_per_turn = self.rows + 2 * TEXT_TOKENS + 2
        self.items = [self.item(image, key=image_key(image)) for image in range(images)]

    def item(self, image: int, *, key: bytes | None, feature: Any = None) -> Item:
        """Return the item of one image; without a `key` the pipeline computes it."""
        if feature is None:
            feature = self.features[image % len(self.features)]
        start = image * self.tokens_per_turn + TEXT_TOKENS + 1
        return Item(feature, Span(start, self.rows), key=key, grid_thw=list(self.grid))

    @cached_property
    def host_ids(self) -> Tensor:
        """Token ids of the whole chat, in host memory."""
        config = self.model.config
        ids = torch.randint(0, 200, (self.images, self.tokens_per_turn))
        ids[:, TEXT_TOKENS] = config.vision_start_token_id
        ids[:, TEXT_TOKENS + 1 : -TEXT_TOKENS - 1] = config.image_token_id
        ids[:, -TEXT_TOKENS - 1] = config.vision_end_token_id
        return ids.flatten()

    def prompt(self, turns: int) -> Tensor:
        """Return the token ids of the first `turns` turns, in host memory."""
        return self.host_ids[: turns * self.tokens_per_turn]

    def without_keys(self) -> list[Item]:
        """Return all items without keys, so that the pipeline hashes their features."""
        return [self.item(image, key=None) for image in range(self.images)]

    def deepstack(self, tokens: int) -> Tensor:
        """Return an uninitialized destination ``(levels, tokens, hidden)`` for the deepstack levels."""
        return self.weight.new_empty(self.levels, tokens, self.weight.shape[1])

    def page_bytes(self, images: int) -> int:
        """Return the bytes that `images` images occupy in a cache, in whole pages of `PAGE_ROWS` rows."""
        return images * -(-self.rows // PAGE_ROWS) * PAGE_ROWS * self.row_width * self.weight.itemsize


def image_key(image: int) -> bytes:
    """Return the 32-byte key of the image with this number."""
    return image.to_bytes(32, "little")
