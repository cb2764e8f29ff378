"""Encode every image once, keep it by image, and write each row of it once.

Names are imported when they are first used, so that the command line can answer, and be interrupted, before
torch has loaded, and `info` works where torch does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitcache._version import __version__

if TYPE_CHECKING:
    from vitcache.adapters.fingerprint import processor_fingerprint
    from vitcache.adapters.transformers import Attachment, attach
    from vitcache.cache.claims import Claim
    from vitcache.cache.embedding_cache import EmbeddingCache
    from vitcache.cache.stats import CacheStats
    from vitcache.errors import CudaError
    from vitcache.item import Chunk, Item, Items
    from vitcache.keys.aliases import Alias, KeyAliases
    from vitcache.keys.content import Namespace, content_key
    from vitcache.keys.threads import KeyedFeature, KeyThreads
    from vitcache.pages.lease import Lease
    from vitcache.pages.reservation import Reservation
    from vitcache.pipeline import EmbedResult, ItemError, VisionPipeline
    from vitcache.placement.ops import embed_tokens, scatter_embeddings
    from vitcache.placement.placement_table import PlacementTable
    from vitcache.placement.spans import (
        Span,
        clip_spans,
        spans_from_inclusive,
        spans_from_placeholder,
        spans_from_token_ids,
    )
    from vitcache.prefetch import Prefetch
    from vitcache.ring.pinned_ring import PinnedRing
    from vitcache.ring.ticket import Ticket
    from vitcache.shadow import Shadow

__all__ = [
    "Alias",
    "Attachment",
    "CacheStats",
    "Chunk",
    "Claim",
    "CudaError",
    "EmbedResult",
    "EmbeddingCache",
    "Item",
    "ItemError",
    "Items",
    "KeyAliases",
    "KeyThreads",
    "KeyedFeature",
    "Lease",
    "Namespace",
    "PinnedRing",
    "PlacementTable",
    "Prefetch",
    "Reservation",
    "Shadow",
    "Span",
    "Ticket",
    "VisionPipeline",
    "__version__",
    "attach",
    "clip_spans",
    "content_key",
    "embed_tokens",
    "processor_fingerprint",
    "scatter_embeddings",
    "spans_from_inclusive",
    "spans_from_placeholder",
    "spans_from_token_ids",
]

_MODULES = {
    "Alias": "vitcache.keys.aliases",
    "Attachment": "vitcache.adapters.transformers",
    "CacheStats": "vitcache.cache",
    "Chunk": "vitcache.item",
    "Claim": "vitcache.cache.claims",
    "CudaError": "vitcache.errors",
    "EmbedResult": "vitcache.pipeline",
    "EmbeddingCache": "vitcache.cache",
    "Item": "vitcache.item",
    "ItemError": "vitcache.pipeline",
    "Items": "vitcache.item",
    "KeyAliases": "vitcache.keys.aliases",
    "KeyThreads": "vitcache.keys.threads",
    "KeyedFeature": "vitcache.keys.threads",
    "Lease": "vitcache.pages.lease",
    "Namespace": "vitcache.keys.content",
    "PinnedRing": "vitcache.ring.pinned_ring",
    "PlacementTable": "vitcache.placement.placement_table",
    "Prefetch": "vitcache.prefetch",
    "Reservation": "vitcache.pages.reservation",
    "Shadow": "vitcache.shadow",
    "Span": "vitcache.placement.spans",
    "Ticket": "vitcache.ring.ticket",
    "VisionPipeline": "vitcache.pipeline",
    "attach": "vitcache.adapters.transformers",
    "clip_spans": "vitcache.placement.spans",
    "content_key": "vitcache.keys.content",
    "embed_tokens": "vitcache.placement.ops",
    "processor_fingerprint": "vitcache.adapters.fingerprint",
    "scatter_embeddings": "vitcache.placement.ops",
    "spans_from_inclusive": "vitcache.placement.spans",
    "spans_from_placeholder": "vitcache.placement.spans",
    "spans_from_token_ids": "vitcache.placement.spans",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vitcache' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
