"""Placement: check the rows and spans of a call, lower them, and write the rows into `inputs_embeds`."""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.placement.ops import embed_tokens, scatter_embeddings
    from vitcache.placement.placement_table import PlacementTable
    from vitcache.placement.spans import (
        Span,
        clip_spans,
        spans_from_inclusive,
        spans_from_placeholder,
        spans_from_token_ids,
    )
    from vitcache.placement.start_up import warm_up

__all__ = [
    "PlacementTable",
    "Span",
    "clip_spans",
    "embed_tokens",
    "scatter_embeddings",
    "spans_from_inclusive",
    "spans_from_placeholder",
    "spans_from_token_ids",
    "warm_up",
]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
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
        },
    )
