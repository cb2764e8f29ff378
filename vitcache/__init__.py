"""A cache of vision embeddings: each image is encoded once, and each of its rows is written once.

A public name is imported when it is first used. So the command line starts before torch is loaded, and can
then be interrupted. `info` also runs if the import of torch fails.
"""

from typing import TYPE_CHECKING

from vitcache._version import __version__ as __version__
from vitcache.lazy import lazy_names

if TYPE_CHECKING:  # the names of `_NAMES` and `_SUBMODULES`, for type checkers
    from vitcache import metrics as metrics
    from vitcache import tracing as tracing
    from vitcache.adapters.attach_stats import AttachStats as AttachStats
    from vitcache.adapters.attachment import Attachment as Attachment
    from vitcache.adapters.changes.invalidate_callback import InvalidateCallback as InvalidateCallback
    from vitcache.adapters.changes.invalidation import invalidate_after as invalidate_after
    from vitcache.adapters.fingerprint import processor_fingerprint as processor_fingerprint
    from vitcache.adapters.transformers import attach as attach
    from vitcache.cache.claims import Claim as Claim
    from vitcache.cache.embedding_cache import EmbeddingCache as EmbeddingCache
    from vitcache.cache.fetch import Fetch as Fetch
    from vitcache.cache.stats import CacheStats as CacheStats
    from vitcache.cache.stats import TierHits as TierHits
    from vitcache.cache.stats import TierStats as TierStats
    from vitcache.errors import CudaError as CudaError
    from vitcache.keys.aliases import Alias as Alias
    from vitcache.keys.aliases import KeyAliases as KeyAliases
    from vitcache.keys.content import content_key as content_key
    from vitcache.keys.identifiers import key_from_id as key_from_id
    from vitcache.keys.namespace import Namespace as Namespace
    from vitcache.keys.threads import KeyedFeature as KeyedFeature
    from vitcache.keys.threads import KeyThreads as KeyThreads
    from vitcache.pages.lease import Lease as Lease
    from vitcache.pages.reservation import Reservation as Reservation
    from vitcache.pipeline.items import Chunk as Chunk
    from vitcache.pipeline.items import Item as Item
    from vitcache.pipeline.items import Items as Items
    from vitcache.pipeline.prefetch import Prefetch as Prefetch
    from vitcache.pipeline.results import EmbedResult as EmbedResult
    from vitcache.pipeline.results import ItemError as ItemError
    from vitcache.pipeline.shadow import Shadow as Shadow
    from vitcache.pipeline.vision_pipeline import VisionPipeline as VisionPipeline
    from vitcache.placement.ops import embed_tokens as embed_tokens
    from vitcache.placement.ops import scatter_embeddings as scatter_embeddings
    from vitcache.placement.placement_table import PlacementTable as PlacementTable
    from vitcache.placement.spans import (
        Span as Span,
    )
    from vitcache.placement.spans import (
        clip_spans as clip_spans,
    )
    from vitcache.placement.spans import (
        spans_from_inclusive as spans_from_inclusive,
    )
    from vitcache.placement.spans import (
        spans_from_placeholder as spans_from_placeholder,
    )
    from vitcache.placement.spans import (
        spans_from_token_ids as spans_from_token_ids,
    )
    from vitcache.placement.start_up import warm_up as warm_up
    from vitcache.ring.pinned_ring import PinnedRing as PinnedRing
    from vitcache.ring.pinned_ring import RingStats as RingStats
    from vitcache.ring.ticket import Ticket as Ticket
    from vitcache.tiers.disk_tier import DiskTier as DiskTier
    from vitcache.tiers.mooncake_tier import MooncakeTier as MooncakeTier
    from vitcache.tiers.write_back import WriteBack as WriteBack

# Maps each defining module to its public names.
_NAMES = {
    "vitcache.adapters.attach_stats": ("AttachStats",),
    "vitcache.adapters.changes.invalidate_callback": ("InvalidateCallback",),
    "vitcache.adapters.changes.invalidation": ("invalidate_after",),
    "vitcache.adapters.fingerprint": ("processor_fingerprint",),
    "vitcache.adapters.attachment": ("Attachment",),
    "vitcache.adapters.transformers": ("attach",),
    "vitcache.cache.claims": ("Claim",),
    "vitcache.cache.embedding_cache": ("EmbeddingCache",),
    "vitcache.cache.fetch": ("Fetch",),
    "vitcache.cache.stats": ("CacheStats", "TierHits", "TierStats"),
    "vitcache.errors": ("CudaError",),
    "vitcache.keys.aliases": ("Alias", "KeyAliases"),
    "vitcache.keys.content": ("content_key",),
    "vitcache.keys.identifiers": ("key_from_id",),
    "vitcache.keys.namespace": ("Namespace",),
    "vitcache.keys.threads": ("KeyThreads", "KeyedFeature"),
    "vitcache.pages.lease": ("Lease",),
    "vitcache.pages.reservation": ("Reservation",),
    "vitcache.pipeline.items": ("Chunk", "Item", "Items"),
    "vitcache.pipeline.prefetch": ("Prefetch",),
    "vitcache.pipeline.results": ("EmbedResult", "ItemError"),
    "vitcache.pipeline.shadow": ("Shadow",),
    "vitcache.pipeline.vision_pipeline": ("VisionPipeline",),
    "vitcache.placement.ops": ("embed_tokens", "scatter_embeddings"),
    "vitcache.placement.placement_table": ("PlacementTable",),
    "vitcache.placement.spans": (
        "Span",
        "clip_spans",
        "spans_from_inclusive",
        "spans_from_placeholder",
        "spans_from_token_ids",
    ),
    "vitcache.placement.start_up": ("warm_up",),
    "vitcache.ring.pinned_ring": ("PinnedRing", "RingStats"),
    "vitcache.ring.ticket": ("Ticket",),
    "vitcache.tiers.write_back": ("WriteBack",),
    "vitcache.tiers.disk_tier": ("DiskTier",),
    "vitcache.tiers.mooncake_tier": ("MooncakeTier",),
}
_SUBMODULES = ("metrics", "tracing")
__all__ = sorted(["__version__", *(name for names in _NAMES.values() for name in names)])

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(__name__, _NAMES, _SUBMODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
