"""`ModelMemory`: the cache and the ring of one model of SGLang, and the line of the log that shows them."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from vitcache.adapters.sglang.encoder_calls import max_rows_per_encode
from vitcache.adapters.sglang.engine_modules import parallel_value
from vitcache.adapters.sglang.feature_places import encoder_moves
from vitcache.adapters.sglang.model_cache import StepShape, make_cache
from vitcache.adapters.sglang.model_tiers import log_name
from vitcache.adapters.sglang.options import Options
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pipeline.feature_mover import RING_BYTES
from vitcache.ring.pinned_ring import PinnedRing

ENCODERS = ("get_image_feature", "get_video_feature", "get_audio_feature")
UNRESERVED_BYTES = 100 << 20  # the default of SGLANG_VLM_CACHE_SIZE_MB
MIB = 1 << 20
logger = logging.getLogger("vitcache.adapters.sglang")


class ModelMemory(NamedTuple):
    """The cache of a model's rows, and the ring that its features pass; None: they pass no ring."""

    cache: EmbeddingCache
    ring: PinnedRing | None

    def close(self) -> None:
        """Close the ring and the cache."""
        if self.ring is not None:
            self.ring.close()
        self.cache.close()


def make_memory(model: Any, shape: StepShape, reserved_bytes: int, options: Options) -> ModelMemory:
    """Allocate the cache and the ring of a model, and log their sizes and the options in one line.

    Parameters
    ----------
    model
        The model of SGLang, or None.
    reserved_bytes
        The bytes that SGLang has reserved for its own cache of embeddings; 0: none.

    Raises
    ------
    MemoryError
        If the memory of a tier or of the ring cannot be allocated.
    """
    device_bytes, source = _device_bytes(options, reserved_bytes)
    cache = make_cache(shape, device_bytes, options)
    # Of the pages that the tier has: it has at least one row, and no part of a page.
    unreserved_bytes = cache.stats().device_capacity_bytes - reserved_bytes
    if unreserved_bytes > 0:
        source += f", {_mib(unreserved_bytes)} of it not reserved by SGLang"
    try:
        memory = ModelMemory(cache, _make_ring(model, shape, options))
    except BaseException:
        cache.close()
        raise
    _log(model, shape, memory, source, options)
    log_name(options)
    return memory


def _device_bytes(options: Options, reserved_bytes: int) -> tuple[int, str]:
    """Return the size of the device tier, and a text that says where the number is from."""
    if options.device_bytes is not None:
        return options.device_bytes, "device_bytes"
    if reserved_bytes:
        return reserved_bytes, "SGLANG_VLM_CACHE_SIZE_MB"
    return UNRESERVED_BYTES, "default"


def _make_ring(model: Any, shape: StepShape, options: Options) -> PinnedRing | None:
    is_cuda = shape.device.type == "cuda"
    num_bytes = options.ring_bytes
    if num_bytes is None:
        if not is_cuda or not _moves_features(model):
            return None
        num_bytes = RING_BYTES
    try:
        return PinnedRing(num_bytes, backend="cuda" if is_cuda else "host", device=shape.device)
    except MemoryError as error:
        raise MemoryError(f"ring_bytes is {num_bytes}: {error}") from error


def _moves_features(model: Any) -> bool:
    """Whether an encoder of a model leaves it to its caller to move features to the device."""
    encoders = [getattr(model, name) for name in ENCODERS if hasattr(model, name)]
    # A model without these methods gives a step functions, whose features SGLang moves.
    return not encoders or not all(map(encoder_moves, encoders))


def _log(model: Any, shape: StepShape, memory: ModelMemory, source: str, options: Options) -> None:
    cache, sizes = memory.cache, memory.cache.stats()
    logger.info(
        "vitcache keeps the rows of %s: %s on %s (%s), %s in host memory, %s on disk, mooncake %s, pages of "
        "%d rows of %d elements of %s, %d deepstack levels, policy %s, at most %d rows per encode, ring of "
        "%s, tensor parallel rank %d of %d, trust_engine_hash %s",
        type(model).__name__,
        _mib(sizes.device_capacity_bytes),
        shape.device,
        source,
        _mib(sizes.host_capacity_bytes),
        _mib(options.disk_bytes),
        options.mooncake or "none",
        cache.page_rows,
        cache.row_width,
        str(shape.dtype).removeprefix("torch."),
        shape.levels,
        options.policy,
        max_rows_per_encode(options),
        _mib(0 if memory.ring is None else memory.ring.capacity_bytes),
        parallel_value("tp_rank", 0),
        parallel_value("tp_size", 1),
        str(options.trust_engine_hash).lower(),
    )


def _mib(num_bytes: int) -> str:
    size = num_bytes / MIB
    return f"{size:.0f} MiB" if size >= 100 else f"{size:.3g} MiB"
