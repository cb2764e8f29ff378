"""The pipeline: from the chunks of a step to its `inputs_embeds`, each item encoded once."""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.pipeline.items import Chunk, Item, Items
    from vitcache.pipeline.prefetch import Prefetch
    from vitcache.pipeline.results import EmbedResult, ItemError
    from vitcache.pipeline.shadow import Shadow
    from vitcache.pipeline.vision_pipeline import VisionPipeline

__all__ = ["Chunk", "EmbedResult", "Item", "ItemError", "Items", "Prefetch", "Shadow", "VisionPipeline"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
            "vitcache.pipeline.items": ("Chunk", "Item", "Items"),
            "vitcache.pipeline.prefetch": ("Prefetch",),
            "vitcache.pipeline.results": ("EmbedResult", "ItemError"),
            "vitcache.pipeline.shadow": ("Shadow",),
            "vitcache.pipeline.vision_pipeline": ("VisionPipeline",),
        },
    )
