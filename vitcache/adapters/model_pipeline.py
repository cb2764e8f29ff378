"""`vision_pipeline`: a `VisionPipeline` for a transformers model; `image_items`: the items of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from vitcache.adapters.disabling import DisabledCalls, is_disabled
from vitcache.adapters.families import Family, split_by_grid
from vitcache.adapters.model_outputs import image_rows
from vitcache.adapters.uncached_step import EncodeRows, embed_uncached
from vitcache.adapters.vision_tower import cache_for, find_family, namespace_for
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.keys.content import Namespace
from vitcache.pipeline.items import Chunk, Item, check_chunks
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.results import EmbedResult
from vitcache.pipeline.vision_pipeline import Steps, VisionPipeline
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.scatter_call import ScatterCall
from vitcache.placement.spans import spans_from_token_ids


def vision_pipeline(
    model: nn.Module,
    cache: EmbeddingCache | None = None,
    *,
    namespace: str | bytes | Namespace | None = None,
    device_bytes: int | str | None = None,
    **options: Any,
) -> ModelPipeline:
    """Return a pipeline that encodes images with `model.get_image_features`, several images per call.

    Parameters
    ----------
    model
        A Qwen2.5-VL or Qwen3-VL, in eval mode.
    cache, namespace, device_bytes
        As in `attach`. After the weights changed, call `cache.advance_epoch()`: a pipeline does not check
        them.
    **options
        Options of `VisionPipeline`: `ring`, `max_rows_per_encode`, `agree`, `feature_dtype`, `stream`,
        `shadow`, `move_features`, `keep_bytes`.

    Raises
    ------
    TypeError
        If `model` is not a Qwen2.5-VL or Qwen3-VL, `namespace` is not a str, bytes or a `Namespace`, or
        `device_bytes` is neither an int nor a str.
    ValueError
        If the rows of `cache` have another width or dtype than the model's, or if both `cache` and
        `device_bytes` are given.

    Notes
    -----
    `image_items` makes the items. The last bits of an image's rows may depend on the images that are encoded
    in the same call. With ``max_rows_per_encode=1`` each image is encoded alone. The stock towers read their
    grids on the host, so the host waits for the device in each of their calls.

    While the environment variable VITCACHE_DISABLE is set to another value than ``""`` and ``"0"``, each call
    of `embed` encodes all items of its chunks, one at a time, and does not use the cache. A running process
    may set the variable. The first such call is logged as a warning; `disabled_calls` counts all.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor for a prompt of 11 tokens.
    Four of the tokens are one image.

    >>> from vitcache import Chunk
    >>> from vitcache.adapters.transformers import image_items, vision_pipeline
    >>> pipeline = vision_pipeline(model)
    >>> input_ids, weight = inputs["input_ids"][0], model.get_input_embeddings().weight
    >>> items = image_items(model, input_ids, inputs["pixel_values"], inputs["image_grid_thw"])
    >>> result = pipeline.embed([Chunk(items, 0, 11)], input_ids, weight)
    >>> tuple(result.inputs_embeds.shape), result.errors, len(pipeline.cache)
    ((11, 32), [], 1)
    """
    base, family = find_grid_family(model)
    tower = getattr(base, family.tower)
    shared = namespace_for(base, tower, namespace).digest()  # raises before the cache allocates its memory
    cache = cache_for(base, tower, cache, device_bytes)
    return ModelPipeline(image_encoder(model), cache, namespace=shared, **options)


class ModelPipeline(VisionPipeline):
    """The pipeline of `vision_pipeline`: it does not use its cache while VITCACHE_DISABLE is set.

    Then `embed` and `place` encode every item of their chunks, one at a time, and `prefetch` does nothing:
    its handle is refused. No keys are computed, and `agree`, `shadow`, `stream` and the ring are not used.
    """

    def __init__(self, encode: EncodeRows, cache: EmbeddingCache, **options: Any) -> None:
        super().__init__(encode, cache, **options)
        self._disabled = DisabledCalls("a vision_pipeline")
        self._steps = _Steps(self._steps, self._disabled, encode, cache)

    @property
    def disabled_calls(self) -> int:
        """Number of calls of `embed` and `place` that did not use the cache, because of VITCACHE_DISABLE."""
        return self._disabled.number

    def prefetch(self, chunks: Sequence[Chunk], *, encode: bool = True) -> Prefetch:
        """As `VisionPipeline.prefetch`; see the class."""
        if not is_disabled():
            return super().prefetch(chunks, encode=encode)
        check_chunks(chunks)
        handle = Prefetch()
        handle.is_refused = True
        return handle


class _Steps:
    """Runs the steps of a `ModelPipeline`: without the cache while VITCACHE_DISABLE is set."""

    def __init__(
        self, steps: Steps, disabled: DisabledCalls, encode: EncodeRows, cache: EmbeddingCache
    ) -> None:
        self._steps = steps
        self._disabled = disabled
        self._encode = encode
        self._cache = cache

    def run(self, call: EmbedCall | ScatterCall, chunks: Sequence[Chunk]) -> EmbedResult:
        """As `StepRunner.run`."""
        if not is_disabled():
            return self._steps.run(call, chunks)
        self._disabled.count()
        return embed_uncached(self._encode, self._cache, chunks, call)


def image_encoder(model: nn.Module) -> EncodeRows:
    """Return the `encode` of `vision_pipeline`: it runs `model.get_image_features` on items of `image_items`.

    ``encode(features, items)`` returns the rows of all items end to end, ``(n, row_width)`` in the vision
    tower's dtype, on the device of the features.

    Raises
    ------
    TypeError
        If `model` is not a Qwen2.5-VL or Qwen3-VL.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor for a prompt of 11 tokens.
    Four of the tokens are one image.

    >>> from vitcache.adapters.transformers import image_encoder, image_items
    >>> names = "input_ids", "pixel_values", "image_grid_thw"
    >>> items = image_items(model, *(inputs[name] for name in names))
    >>> encode = image_encoder(model)
    >>> encode([item.feature for item in items], items).shape
    torch.Size([4, 32])
    """
    base, _ = find_grid_family(model)

    @torch.no_grad()
    def encode(features: list[Tensor], items: list[Item]) -> Tensor:
        pixels = features[0] if len(features) == 1 else torch.cat(features)
        grids = torch.tensor([item.encoder_kwargs["grid_thw"] for item in items], device=pixels.device)
        return image_rows(base.get_image_features(pixels, grids, return_dict=True))

    return encode


def image_items(
    model: nn.Module,
    input_ids: Tensor,
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    *,
    keys: Sequence[bytes] | None = None,
    complete_keys: bool = False,
) -> list[Item]:
    """Return one `Item` per image of a prompt, from the outputs of the model's processor.

    Parameters
    ----------
    model
        A Qwen2.5-VL or Qwen3-VL.
    input_ids
        Token ids of the prompt, ``(T,)`` or ``(1, T)``; `config.image_token_id` at the tokens of images.
    pixel_values
        Patches of all images, ``(sum of t * h * w, width)``. The items refer to views of this tensor.
    image_grid_thw
        t, h and w of each image, in patches: ``(images, 3)``, ints.
    keys
        32 bytes per image. The pipeline folds its namespace into them. None: the pipeline hashes the patches.
    complete_keys
        True: the keys name the model and its weights, too, and the pipeline uses them unchanged; see `Item`.

    Raises
    ------
    TypeError
        If `model` is not a Qwen2.5-VL or Qwen3-VL, `image_grid_thw` is not a tensor, or `complete_keys` is
        not a bool.
    ValueError
        If the number of patches, keys or placeholders does not agree with `image_grid_thw`, or if
        `complete_keys` is true and `keys` is None.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor for a prompt of 11 tokens.
    Four of the tokens are one image.

    >>> from vitcache.adapters.transformers import image_items
    >>> names = "input_ids", "pixel_values", "image_grid_thw"
    >>> [item] = image_items(model, *(inputs[name] for name in names))
    >>> item.spans, item.num_rows
    ((Span(start=3, length=4, source_start=0),), 4)
    """
    base, family = find_grid_family(model)
    arguments = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
    parts = family.splits["image"](base.config, arguments)
    if parts is None or parts.identities is None:
        raise TypeError(f"image_grid_thw must be a tensor, got {type(image_grid_thw).__name__}")
    grids = parts.identities
    if keys is not None and len(keys) != len(grids):
        raise ValueError(f"keys must have one key per image: expected {len(grids)}, got {len(keys)}")
    merged = base.config.vision_config.spatial_merge_size**2
    num_rows = [prod(grid) // merged for grid in grids]
    spans = spans_from_token_ids(input_ids, base.config.image_token_id, num_rows)
    return [
        Item(
            parts.item_call(i).pixels,
            spans[i],
            num_rows=num_rows[i],
            key=None if keys is None else keys[i],
            complete_key=complete_keys,
            grid_thw=grid,
        )
        for i, grid in enumerate(grids)
    ]


def find_grid_family(model: nn.Module) -> tuple[Any, Family]:
    """Return the base model and its family.

    Raises
    ------
    TypeError
        If the family's images are not patches with a grid.
    """
    base, family = find_family(model, "put on a pipeline")
    if family.splits["image"] is not split_by_grid:
        raise TypeError(
            f"{type(model).__name__} (model type {base.config.model_type!r}) cannot be put on a pipeline: "
            "its images are not patches with a grid, as those of qwen2_5_vl and qwen3_vl are"
        )
    return base, family
