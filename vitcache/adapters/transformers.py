"""`attach(model)`: the vision features of a Hugging Face transformers model come from an `EmbeddingCache`.

For who drives the prefill there are `vision_pipeline`, `image_items` and `ChunkedPrefill`, from other files.
"""

from __future__ import annotations

from torch import nn

from vitcache.adapters.cached_encoder import CachedEncoder
from vitcache.adapters.chunked_prefill import ChunkedPrefill
from vitcache.adapters.model_pipeline import image_encoder, image_items, vision_pipeline
from vitcache.adapters.session import AttachStats, Session
from vitcache.adapters.vision_tower import cache_for, find_family, namespace_for
from vitcache.arguments import to_int
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.ring.pinned_ring import PinnedRing

__all__ = ["Attachment", "ChunkedPrefill", "attach", "image_encoder", "image_items", "vision_pipeline"]


def attach(
    model: nn.Module,
    cache: EmbeddingCache | None = None,
    *,
    namespace: str | None = None,
    device_bytes: int | None = None,
    ring: PinnedRing | None = None,
    shadow_every: int = 0,
) -> Attachment:
    """Serve the image and video features of `model` from a cache, one entry per image, tile or video.

    `get_image_features` and `get_video_features` of the base model are replaced on this object, so `forward`
    and `generate` need no change, and the model's own merge stays. Items that the cache lacks are encoded by
    the stock method, one at a time; logits are bit for bit those of the stock model with its items encoded
    one at a time. Each call returns a new output object of the stock class, with `pooler_output` and, where
    the model has them, `deepstack_features`, in the model's own containers; the rest is None.

    Parameters
    ----------
    model
        An `XForConditionalGeneration` or its base model: Qwen2.5-VL, Qwen3-VL, LLaVA-OneVision, InternVL or
        Gemma 3. `pixel_values` may stay on the CPU: only items to encode are copied to the vision tower.
    cache
        Where rows go: `row_width` is hidden * (1 + deepstack levels), `dtype` the vision tower's. By default
        a new one on the vision tower's device.
    namespace
        Attachments of equal `namespace`, model class, config, name and revision share entries in one cache.
        Give it only where the weights are equal. By default an attachment shares with no other. Once a
        change of its weights was noticed, an attachment shares no more; entries of the others stay.
    device_bytes
        Budget of the default cache. By default room for 32,768 rows: 1 GiB for Qwen3-VL-8B in bfloat16 with
        its three deepstack levels, 224 MiB for Qwen2.5-VL-7B.
    ring
        What pixels in pageable memory go through to a vision tower on a GPU. By default a new one of 128 MiB,
        made when the first pixels are to be moved.
    shadow_every
        One hit in so many is encoded again, to be compared with its cached rows, which are what the call
        returns: `stats().shadow_difference`, and a warning in the log where they differ. That hit costs an
        encode and waits for the device. 0: none is.

    Raises
    ------
    TypeError
        If the model has no `get_image_features`, or how its calls break into items is not known here; or if
        `namespace` is no string, or `shadow_every` no int.
    ValueError
        If `cache` holds rows of another width or dtype, or comes with `device_bytes`; or if `shadow_every` is
        negative.
    RuntimeError
        If the model is attached already; and later, from a call of the model, if its features are no longer
        of the cache's width and dtype.

    Notes
    -----
    Calls in grad mode, in training or under autocast, and calls for a tuple or for hidden states or
    attentions of the tower, go to the stock method as they are: `stats().bypassed`. So do calls with an
    argument, unknown here, that is neither plain nor None. Plain ones are part of the key, as the tower may
    use them, but for `return_dict`, `use_cache`, `num_items_in_batch` and `output_router_logits`.

    No earlier entry is served after a call in training, nor once a call finds that a parameter or buffer
    outside the language model was replaced, converted or written in place, as optimizers and
    `load_state_dict` do, or that the attention implementation is another. Not seen are writes through `.data`
    or to inference tensors or to offloaded weights, changes undone before the next call such as a conversion
    to another dtype and back, hooks, and a switch between adapters that are there already: after one of these
    call `cache.advance_epoch()`. An encode that was under way then is not cached.

    The first item of a modality is always encoded, because its output shows the containers.
    LLaVA-OneVision encodes an image alone in its prompt as several tiles and one among others as a single
    tile, so the first image of a chat is encoded again in the second turn.

    A model spread over devices (`device_map`) keeps its hooks: the stock method runs through them, and rows
    come back to the device where the stock features are. Pixels for an offloaded tower are left to its hook.

    Concurrent calls are as safe as with the stock model. Pixels on a GPU are copied to the host for their
    keys, which waits for the current stream. `copy.deepcopy` and `pickle` of the model give one that is not
    attached. A shallow `copy.copy` of the base model, and so a replica by `nn.DataParallel`, stays bound to
    the original: its features are those of the original's weights.
    """
    if not isinstance(namespace, str | None):
        raise TypeError(f"namespace must be str, it is {type(namespace).__name__}")
    shadow_every = to_int("shadow_every", shadow_every, 0)
    base, family = find_family(model, "attached")
    if isinstance(vars(base).get("get_image_features"), CachedEncoder):
        raise RuntimeError(f"this {type(model).__name__} is already attached, detach it first")
    tower = getattr(base, family.tower)
    cache = cache_for(base, tower, cache, device_bytes)
    session = Session(base, family.tower, cache, namespace_for(base, tower, namespace), ring, shadow_every)
    encoders = {
        name: CachedEncoder(session, getattr(base, name), modality, split)
        for modality, split in family.splits.items()
        if hasattr(base, name := f"get_{modality}_features")
    }
    return Attachment(session, encoders)


class Attachment:
    """A model whose features come from a cache, until `detach`; made by `attach`."""

    def __init__(self, session: Session, encoders: dict[str, CachedEncoder]) -> None:
        self._session = session
        self._encoders = encoders
        self._replaced = {name: vars(session.model)[name] for name in encoders if name in vars(session.model)}
        for name, encoder in encoders.items():
            setattr(session.model, name, encoder)

    @property
    def cache(self) -> EmbeddingCache:
        """The cache, which outlives the attachment."""
        return self._session.cache

    def stats(self) -> AttachStats:
        """Return what the calls so far came to; `cache.stats()` tells about the cache."""
        return self._session.stats

    def detach(self) -> None:
        """Give the model its own methods back, once no call is under way; a second call does nothing.

        Raises
        ------
        RuntimeError
            If another wrapper was put over a method since `attach`; remove it first.
        """
        model = self._session.model
        for name, encoder in self._encoders.items():
            if vars(model).get(name) is not encoder:
                raise RuntimeError(f"{name} was replaced after attach: undo that before detach")
        for name in self._encoders:
            delattr(model, name)
        for name, method in self._replaced.items():
            setattr(model, name, method)
        self._encoders = {}
        self._replaced = {}
