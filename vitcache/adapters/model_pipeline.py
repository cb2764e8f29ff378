"""`vision_pipeline`: a `VisionPipeline` for a transformers model; `image_encoder`: its encode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vitcache.adapters.changes.weights_names import WeightsNames
from vitcache.adapters.disabling import DisabledCalls, is_disabled
from vitcache.adapters.families import GRID_FAMILIES, Family
from vitcache.adapters.grid_encoder import GridEncoder
from vitcache.adapters.uncached_step import EncodeRows, embed_uncached
from vitcache.adapters.vision_tower import cache_for, find_family, namespace_for
from vitcache.adapters.weights import WeightsFingerprint
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.tier_arguments import check_tiers
from vitcache.keys.namespace import Namespace, tenant_of
from vitcache.pipeline.items import Chunk, check_chunks
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.results import EmbedResult
from vitcache.pipeline.vision_pipeline import Steps, VisionPipeline
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.scatter_call import ScatterCall
from vitcache.tiers.protocol import Tier


def vision_pipeline(
    model: nn.Module,
    cache: EmbeddingCache | None = None,
    *,
    namespace: str | bytes | Namespace | None = None,
    device_bytes: int | str | None = None,
    host_bytes: int | str | None = None,
    tiers: Sequence[Tier] = (),
    **options: Any,
) -> ModelPipeline:
    """Return a pipeline that encodes images and videos with the stock methods, several items per call.

    The stock methods are `model.get_image_features` and `model.get_video_features`.

    Parameters
    ----------
    model
        A model in eval mode, or a wrapper as in `attach`, of a family that docs/models.md marks for chunked
        prefill: most Qwen and GLM families, Cosmos 3 and Cohere Compass.
    cache, namespace, device_bytes, host_bytes, tiers
        As in `attach`. After the weights changed, call `cache.advance_epoch()`: a pipeline does not check
        them. If the cache has tiers, `prefetch` asks them.
    **options
        Options of `VisionPipeline`: `ring`, `max_rows_per_encode`, `agree`, `feature_dtype`, `stream`,
        `shadow`, `move_features`, `keep_bytes`, `tenant`.

    Raises
    ------
    TypeError
        If `model` is of another family, `namespace` is not a str, bytes or a `Namespace`, or
        `device_bytes` is neither an int nor a str.
    ValueError
        If the rows of `cache` have another width or dtype than the model's, or if both `cache` and
        `device_bytes` are given.

    Notes
    -----
    `image_items` and `video_items` make the items. The last bits of an item's rows may depend on the items
    that are encoded in the same call. With ``max_rows_per_encode=1`` each item is encoded alone. The stock
    towers read their grids on the host, so the host waits for the device in each of their calls.

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
    if cache is not None and not isinstance(cache, EmbeddingCache):
        raise TypeError(f"cache must be an EmbeddingCache or None, got {type(cache).__name__}")
    tiers = check_tiers(tiers, has_host_tier=True)
    has_tiers = bool(tiers) or (cache is not None and cache.has_lower_tiers)
    named = namespace_for(base, tower, namespace, has_tiers=has_tiers)  # before the cache allocates memory
    weights = WeightsFingerprint(base, tower)
    shared = WeightsNames(named, weights).digest(weights)
    of_cache: dict[str, Any] = {"host_bytes": host_bytes}
    if tiers:
        of_cache |= {"tiers": tiers, "weights_name": named.digest()}
    cache = cache_for(base, tower, cache, device_bytes, **of_cache)
    options.setdefault("tenant", tenant_of(namespace))
    return ModelPipeline(image_encoder(model), cache, namespace=shared, **options)


class ModelPipeline(VisionPipeline):
    """The pipeline of `vision_pipeline`: it does not use its cache while VITCACHE_DISABLE is set.

    Then `embed` and `place` encode every item of their chunks, one at a time; `fetch` does nothing, and so
    does `prefetch`: its handle is refused. No keys are computed, and `agree`, `shadow`, `stream` and the ring
    are not used.
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

    def fetch(self, chunks: Sequence[Chunk]) -> None:
        """As `VisionPipeline.fetch`; see the class."""
        if not is_disabled():
            super().fetch(chunks)


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
    """Return the `encode` of `vision_pipeline`: it runs the stock methods on images and videos.

    ``encode(features, items)`` returns the rows of all items end to end, ``(n, row_width)`` in the vision
    tower's dtype, on the device of the features. Items with `grid_thw`, as from `image_items`, are encoded by
    one call of `model.get_image_features`, and items with `video_grid_thw`, as from `video_items`, by one
    call of `model.get_video_features`. An item with neither or both raises ValueError.

    Raises
    ------
    TypeError
        If `model` is not of one of the families that `vision_pipeline` supports.

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
    return GridEncoder(find_grid_family(model)[0])


def find_grid_family(model: nn.Module) -> tuple[Any, Family]:
    """Return the base model and its family.

    Raises
    ------
    TypeError
        If the family is not in `GRID_FAMILIES`.
    """
    return find_family(model, "put on a pipeline", GRID_FAMILIES)
