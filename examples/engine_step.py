"""An engine's prefill with a pipeline: two requests in one batch, one chunk of each request per step.

Runs on a GPU or the CPU. `vision_tower` stands for the engine's encoder, and the loop for its scheduler.
"""

import torch

import vitcache

hidden, vocabulary, chunk_tokens = 64, 1000, 16
device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.randn(vocabulary, hidden, device=device).bfloat16()
encoded_items = []


def vision_tower(features: list[torch.Tensor], items: list[vitcache.Item]) -> list[torch.Tensor]:
    """Encode one feature per item, of shape (n, 32) and on the device: one row per four patches."""
    encoded_items.extend(items)
    return [patches.bfloat16().reshape(-1, 128)[:, :hidden] for patches in features]


cache = vitcache.EmbeddingCache(hidden, device=device, device_bytes=1 << 20, host_bytes=4 << 20)
namespace = vitcache.Namespace("my-model", revision="main", dtype="bfloat16")

# Two prompts of 40 tokens. Both contain the first image; one also contains the second image.
first, second = torch.randn(40, 32), torch.randn(48, 32)
requests = [
    vitcache.Items(
        [vitcache.Item(first, vitcache.Span(2, 10)), vitcache.Item(second, vitcache.Span(20, 12))]
    ),
    vitcache.Items([vitcache.Item(first, vitcache.Span(25, 10))]),
]

with vitcache.VisionPipeline(vision_tower, cache, namespace=namespace) as pipeline:
    for start in range(0, 40, chunk_tokens):
        length = min(chunk_tokens, 40 - start)
        chunks = [
            vitcache.Chunk(items, start, length, token_offset=number * length)
            for number, items in enumerate(requests)
        ]
        input_ids = torch.zeros(len(requests) * length, dtype=torch.int64, device=device)
        inputs_embeds, errors = pipeline.embed(chunks, input_ids, weight)
        if errors:
            raise errors[0].cause  # an engine would fail only the request of that item
        next_chunks = [vitcache.Chunk(items, start + length, chunk_tokens) for items in requests]
        prefetch = pipeline.prefetch(next_chunks)  # runs while the language model reads inputs_embeds
        print(f"tokens {start} to {start + length}: {tuple(inputs_embeds.shape)}")
        prefetch.wait()

print(f"encoded {len(encoded_items)} images for 3 items; {cache.stats()}")
