"""`attach(model)`: a Hugging Face transformers model reads its vision features from an `EmbeddingCache`.

For callers that run the language model themselves, this module also exports `vision_pipeline`, `image_items`,
`video_items`, `image_encoder`, `ChunkedPrefill` and `prefill_batch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from vitcache.adapters.attachable import find_attachable
from vitcache.adapters.attachment import Attachment, detach_lost
from vitcache.adapters.cached_encoder import CachedEncoder
from vitcache.adapters.changes.byte_fingerprint import ByteFingerprint
from vitcache.adapters.chunked_prefill import ChunkedPrefill
from vitcache.adapters.feature_owner import method_name
from vitcache.adapters.forward_placement import ForwardPlacement
from vitcache.adapters.model_pipeline import image_encoder, vision_pipeline
from vitcache.adapters.prefill_batch import PrefillResult, prefill_batch
from vitcache.adapters.prompt_items import image_items, video_items
from vitcache.adapters.session import Session
from vitcache.adapters.splits.call_parts import Split
from vitcache.adapters.supported_versions import warn_unsupported
from vitcache.adapters.vision_tower import cache_for, namespace_for, new_cache, row_width
from vitcache.adapters.wrappers import unwrap
from vitcache.arguments import to_int
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.tier_arguments import check_tiers
from vitcache.keys.namespace import Namespace, tenant_of
from vitcache.ring.pinned_ring import PinnedRing
from vitcache.tiers.protocol import Tier

__all__ = [
    "Attachment",
    "ChunkedPrefill",
    "PrefillResult",
    "attach",
    "image_encoder",
    "image_items",
    "prefill_batch",
    "video_items",
    "vision_pipeline",
]


def attach(
    model: Any,
    cache: EmbeddingCache | None = None,
    *,
    namespace: str | bytes | Namespace | None = None,
    device_bytes: int | str | None = None,
    host_bytes: int | str | None = None,
    policy: str | None = None,
    checksum: bool | None = None,
    splits: Mapping[str, Split] | None = None,
    ring: PinnedRing | None = None,
    shadow_every: int = 0,
    fingerprint_calls: int = 0,
    placement: str = "auto",
    tiers: Sequence[Tier] = (),
) -> Attachment:
    """Cache the image, video and audio features of a model: an item in the cache is not encoded again.

    `attach` replaces the stock methods `get_image_features`, `get_video_features` and `get_audio_features` of
    the module whose forward calls them, usually the base model. `forward`, `generate` and the model's merge
    of image and text embeddings do not change. The cache has one entry per image, tile, video or audio clip.
    Items that are not in the cache are encoded by the stock method, one at a time.

    The logits equal bit for bit those of the stock model, the model without `attach`, with its items encoded
    one at a time. Each call of a replaced method returns a new output object of the stock class. The object
    has the rows (`pooler_output` or `last_hidden_state`) and, if the model has them, `deepstack_features`,
    `attention_mask` and `visual_indicator_features`, in the same containers as the stock output. Fields that
    the stock forward does not read, such as `hidden_states`, have the value None.

    Parameters
    ----------
    model
        A generative vision-language model of transformers, its base model, or a wrapper of one: a PeftModel,
        DistributedDataParallel, DataParallel, a module of `torch.compile` or of FSDP2, or a `pipeline()`.
        docs/models.md lists the models that tests prove. `pixel_values` may stay on the CPU: only pixels that
        must be encoded are copied to the vision tower.
    cache
        An `EmbeddingCache` whose `row_width` is hidden * (1 + deepstack levels) and whose `dtype` is that of
        the rows, or float32. By default a new cache on the vision tower's device. If the tower has weights of
        several dtypes, the first output of the model decides the dtype of the rows: if the default cache has
        another one, it is closed, and `Attachment.cache` is then a new cache of the same budget. Rows of a
        further modality that this cache cannot hold are logged once and served by the stock method.
    namespace
        A name for the weights: a str, bytes or a `Namespace`. Attachments share the entries of one cache if
        their `namespace`, model class, config, name, revision, attention implementation, dtype and active
        adapters of the vision tower are equal. Give equal names only to equal weights. By default an
        attachment shares no entries; over tiers, attachments share entries if the bytes of their weights and
        all settings are equal, see *Rows that outlive the process* below. If an attachment notices a change
        of its weights, it no longer shares entries; the other attachments keep theirs.
    device_bytes
        Size of the default cache in bytes, an int or a str such as ``"2GiB"``. By default the cache has pages
        for 32,768 rows: 1 GiB for Qwen3-VL-8B in bfloat16 with its three deepstack levels, 224 MiB for
        Qwen2.5-VL-7B. ``vitcache memory --model`` tells how many images a size holds.
    host_bytes, policy, checksum
        Options of the default cache, as in `EmbeddingCache`: its host tier, its eviction policy, and whether
        rows in the host tier are checked. With `tiers`, `host_bytes` is `device_bytes` by default.
    splits
        Functions that split a call into items, by modality: ``"image"``, ``"video"`` or ``"audio"``. They
        replace those that `attach` would use; see *A split of your own* below.
    ring
        A `PinnedRing` that copies pixels from pageable memory to a vision tower on a GPU. By default a new
        ring of 256 MiB, made when the first pixels are copied.
    shadow_every
        Encode every `shadow_every`-th hit again and compare it with its cached rows. `stats()` gives the
        largest difference, and any difference is logged as a warning. The call returns the cached rows. A hit
        that is encoded again costs an encode and waits for the device. 0 turns this off.
    fingerprint_calls
        N: each call compares one N-th of the bytes of the weights outside of the language model with their
        checksums. So a change that nothing else shows, such as a write through `.data`, is found by the N-th
        call after it at the latest, if it lasts: no earlier entry is used again, a warning names the weight,
        and `stats().changes` counts it. The ranks of a distributed model may find it at different calls.
        A call reads about 1/N of the weights, with two launches for each weight or 256 KiB, and needs 512 KiB
        of temporary memory. On a GPU it reads 1/(N - 1), with two launches for each weight or 2 MiB, and 4
        MiB of temporary memory; the host does not wait, unless N is 1, and if the GPU lags behind the host,
        a later call finds the change. `attach`, and the first call after each noticed change, read all
        weights and wait. Weights offloaded to files are not read. 0 turns this off.
    placement
        ``"auto"``: where possible, the stock forward places the rows: one launch writes them from the cache
        to the output of the token embedding; see *Placement* below. ``"off"``: one launch assembles the rows
        of a call in one new buffer, and the stock forward merges them.
    tiers
        Tiers of the default cache below its host tier, such as a `DiskTier`: its rows outlive the process.

    Returns
    -------
    Attachment
        The attachment, with its `cache` and its `stats()`. `Attachment.detach` restores the stock methods.

    Raises
    ------
    TypeError
        If `model` cannot be attached: the message names the model and the reason. If `namespace` is not a
        str, bytes or a `Namespace`; if a size is neither an int nor a str; if `tiers` is not a list or tuple
        of tiers; if `shadow_every` or
        `fingerprint_calls` is not an int; if `splits` is not a mapping of functions; if `placement` is not a
        str. A bool is not an int.
    ValueError
        If the cache has tiers, `namespace` is None, and a weight is offloaded, sharded or of an unknown kind.
        If the rows of `cache` have another width or dtype than the model's; if both `cache` and an option of
        the default cache are given; if a size is less than a page or not a size in bytes; if `policy` is not
        the name of a policy; if `splits` has a modality that the model does not have; if `shadow_every` or
        `fingerprint_calls` is negative; if `placement` is neither "auto" nor "off".
    RuntimeError
        If the model is attached already. An attachment is replaced if its `Attachment` was freed, or if an
        exception ended its `attach`. A later call of the model raises RuntimeError if its features no longer
        have the cache's width and dtype, and TypeError if its output has a field that `attach` does not
        understand, or if a split that no test verifies does not give the rows of the stock method. Such an
        item is not cached.

    Notes
    -----
    *Calls that bypass the cache.* The stock method serves calls in grad mode, in training mode and under
    autocast, and calls that ask for a tuple or for hidden states or attentions of the tower.
    `stats().bypassed` counts these calls. An argument that `attach` does not know is part of the key, because
    the tower may use it. If such an argument is not None, a number, a string, or a list or tuple of these,
    the call bypasses the cache, too. The arguments `return_dict`, `use_cache`, `num_items_in_batch` and
    `output_router_logits` are not part of the key.

    The first call in training mode is logged as a warning: nothing is cached then.

    *Models without a name.* If docs/models.md does not have the model, `attach` splits its calls by the
    signature of the stock method: patches with an argument ``*_grid_thw``, or one item per index of the first
    dimension; every other tensor must have one index per item. The first calls with several items, of equal
    and of different lengths, are encoded once more as a whole. If containers or numbers of rows differ, or
    the rows differ by more than rounding, the call raises TypeError and nothing of it is cached.

    *A split of your own.* A split is ``split(config, arguments)``. `arguments` has all arguments of the stock
    method by name. It returns a list with the arguments of each item: with these in place of those of the
    call, the stock method encodes this item alone. The first one is the item's pixels, and all of them are
    part of its key, so leave out padding that depends on the other items. None means: call the stock method
    instead. The first call with several items is checked as above::

        def split(config, arguments):
            pixels, counts = arguments["pixel_values"], arguments["num_tiles"]
            tiles = pixels.split(counts.tolist())
            return [{"pixel_values": t, "num_tiles": c[None]} for t, c in zip(tiles, counts)]

        attachment = vitcache.attach(model, splits={"image": split})

    *Placement.* While a forward runs with `input_ids`, in eval mode and without gradients, the replaced
    methods return features without memory, and so they do in `generate`. `Tensor.masked_scatter` in the stock
    forward, the merge, then writes the rows in place, and packs deepstack levels for image tokens alone: one
    launch reads each row once, and writes it once over the row that the token embedding wrote. Logits and
    tokens are bit for bit those of the stock merge. All other code of the stock forward runs as before, also
    with a compiled language model. Any other operation copies the rows to a tensor with memory. A call of
    `get_image_features` by the user returns tensors with memory. The output of a token embedding that has
    hooks or children, or is a module of another library, is copied before rows are written. A
    `TorchDispatchMode` that keeps this output sees the rows in it.

    `stats().placed_calls` counts the calls whose rows were placed, and `stats().unplaced_calls` the other
    calls by reason: among them are calls with gradients or with the caller's `inputs_embeds`, and calls of
    models whose placement no test has shown to be exact. If torch.compile traces the whole forward, rows are
    assembled. Features without memory keep leases on their entries: until `generate` returns, and in
    `image_hidden_states` of an output until they are read or the output is deleted.

    *Rows that outlive the process.* If the cache has tiers, they are asked for the items that a call misses,
    before the call encodes: the call waits at most `fetch_timeout_s` of the cache, 0.1 s by default, because
    `attach` knows no earlier moment. Late items are encoded, and their rows still enter the cache. A call
    without a miss asks no tier. The number of rows of an item must be known for this: it is that of an
    encoded item of the same shape and size, or in proportion to the pixels, if that held for all items that
    this process has encoded. So the first item of a process is always encoded, and a model such as
    LLaVA-OneVision fetches only images of a size that this process has encoded once.

    If `namespace` is None, `attach` then reads the bytes of all weights outside of the language model, and
    the namespace is their BLAKE3 digest, with those of quantised weights and loaded adapters, the settings,
    the code of hooks and replaced methods, and the versions of torch and transformers. It does not depend on
    the folder, the device or the process. It does not contain code of a model outside of transformers: give a
    namespace if that changes. Hooks whose state has no text make it random, and a warning names them. Weights
    that are offloaded or sharded cannot be named so: ValueError, give a namespace. Of the default cache, the
    namespace is also the `weights_name`.

    After a noticed change of the weights, rows are stored under a random name, which no later process looks
    up. After `invalidate`, and a change that `fingerprint_calls` finds, the default cache also revokes the
    name of its weights, because rows of the changed weights may be stored under it: no process finds rows
    that were stored before. If the cache is your own, call its `advance_epoch`, too.

    *VITCACHE_DISABLE.* While this environment variable is set to another value than ``""`` and ``"0"``, the
    stock method serves every call, and nothing is looked up or cached. The entries stay in the cache. A
    running process may set or delete the variable in `os.environ`: each call reads it.
    `stats().disabled_calls` counts these calls; the first one is logged as a warning.

    *Changes of the model.* Each call compares the modules outside of the language model with their state at
    the last call, and torch tells of each step of an optimizer. After new or written weights, conversions,
    replaced methods, and a call in training mode of a model that can be trained, no earlier entry is used
    again. Adapters of PEFT, settings (attributes and values of configs that are numbers, strings, or
    containers of these) and hooks are part of the keys instead: a state that returns finds its entries.
    `stats().changes` counts the changes by kind. A call is not cached while the forward has an adapter per
    prompt, or a part of the vision tower drops values at random.

    `attach` cannot notice bytes that are written through `.data`, a NumPy array, an inference tensor or a
    kernel of another library, nor changes of code or of objects outside of the model. After one of these,
    call `Attachment.invalidate`. docs/changes.md lists the changes of both kinds, and each of them is a test.
    The rows of an encode that began before the change was noticed are returned, but no later call finds them.

    *Versions.* If the version of transformers is outside of the range in `vitcache.versions.SUPPORTED`, one
    warning per process names the version and the range.

    *The first item.* The first item of a modality, and of each set of options of its calls, is always
    encoded, because the stock output shows which containers the model uses. LLaVA-OneVision encodes the only
    image of a prompt as several tiles, and each image of a prompt with several images as one tile. So the
    first image of a chat is encoded again in the second turn.

    *Devices.* A model that is spread over devices (`device_map`) keeps its hooks: calls of the stock method
    run the hooks. Features are returned on the device of the stock features. The hook of an offloaded tower
    moves its pixels itself.

    *Memory layouts.* Equal pixels share an entry in every memory layout. A tower may round pixels in
    `channels_last` otherwise, so the layout of the first call decides the last bits.

    *Threads and streams.* Concurrent calls are as safe as with the stock model. To hash pixels that are on a
    GPU, the host waits for the current stream and copies the pixels to host memory.

    *Copies.* `copy.deepcopy` and `pickle` of the model give a model that is not attached. A shallow
    `copy.copy` of the base model, and a replica by `nn.DataParallel`, keep the replacements of the original
    model: they return features of the original's weights.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor.
    The prompt has one image.

    >>> import torch, vitcache
    >>> attachment = vitcache.attach(model)
    >>> with torch.no_grad():
    ...     first = model(**inputs).logits  # encodes the image
    ...     second = model(**inputs).logits  # reads its rows from the cache
    >>> torch.equal(first, second)
    True
    >>> stats = attachment.stats()
    >>> stats.encoded, stats.hits, stats.placed_calls
    (1, 1, 2)
    >>> attachment.detach()
    """
    shadow_every = to_int("shadow_every", shadow_every, 0)
    fingerprint_calls = to_int("fingerprint_calls", fingerprint_calls, 0)
    if not isinstance(placement, str):
        raise TypeError(f"placement must be a str, got {type(placement).__name__}")
    if placement not in ("auto", "off"):
        raise ValueError(f'placement is {placement!r}, it must be "auto" or "off"')
    for name, value, cls in (("cache", cache, EmbeddingCache), ("ring", ring, PinnedRing)):
        if value is not None and not isinstance(value, cls):
            raise TypeError(f"{name} must be a {cls.__name__} or None, got {type(value).__name__}")
    warn_unsupported()
    owner, family = find_attachable(model, splits)
    if not detach_lost(owner):
        raise RuntimeError(f"this {type(owner).__name__} is attached already: call Attachment.detach() first")
    tower = getattr(owner, family.tower)
    tiers = check_tiers(tiers, has_host_tier=True)
    has_tiers = bool(tiers) or (cache is not None and cache.has_lower_tiers)
    shared = namespace_for(owner, tower, namespace, has_tiers=has_tiers)  # before the cache allocates memory
    options: dict[str, Any] = {"host_bytes": host_bytes, "policy": policy, "checksum": checksum}
    if tiers:
        options |= {"tiers": tiers, "weights_name": shared.digest()}
    width = row_width(owner.config) if family.has_name else None
    made = cache_for(owner, tower, cache, device_bytes, width, **options)
    make = None
    if cache is None:
        make = partial(new_cache, owner, tower, device_bytes=device_bytes, options=options)
    knows_width, tenant = width is not None, tenant_of(namespace)
    session = Session(owner, family.tower, made, shared, ring, shadow_every, make, knows_width, tenant)
    if fingerprint_calls:
        session.state.bytes = ByteFingerprint(fingerprint_calls, owner)
    if placement == "auto":
        reason = None if family.has_name else "no test shows that this model can be placed"
        session.placement = ForwardPlacement(owner, unwrap(model), reason)
    encoders = {
        method_name(modality): CachedEncoder(session, getattr(owner, method_name(modality)), modality, family)
        for modality in family.splits
    }
    return Attachment(session, encoders)
