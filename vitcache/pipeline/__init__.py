"""The pipeline: from the windows of a step to its `inputs_embeds`, each image encoded once."""

from vitcache.pipeline.items import Chunk, Item, Items
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.results import EmbedResult, ItemError
from vitcache.pipeline.shadow import Shadow
from vitcache.pipeline.vision_pipeline import VisionPipeline

__all__ = ["Chunk", "EmbedResult", "Item", "ItemError", "Items", "Prefetch", "Shadow", "VisionPipeline"]
