"""An engine's prefill steps with a pipeline: two requests in one batch, chunk by chunk.

Runs anywhere; `vision_tower` stands for the engine's encoder, the loop for its scheduler.
"""

import torch

import vitcache

hidden, vocabulary, chunk_tokens = 64, 1000, 16
device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.randn(vocabulary, hidden, device=device).bfloat16()
encoded = []


def vision_tower(features: list[torch.Tensor], items: list[vitcache.Item]) -> list[torch.Tensor]:
    """Per item (patches, 32) -> one row per four patches; the features are on the device already."""
    encoded.extend(items)
    return [patches.bfloat16().reshape(-1, 128)[:, :hidden] for patches in features]


cache = vitcache.EmbeddingCache(hidden, device=device, device_bytes=1 << 20, host_bytes=4 << 20)
namespace = vitcache.Namespace("my-model", revision="main", dtype="bfloat16").digest()

# Two prompts of 40 tokens: both show the first image, one of them a second one.
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
            raise errors[0].cause  # an engine fails that request alone
        following = [vitcache.Chunk(items, start + length, chunk_tokens) for items in requests]
        ahead = pipeline.prefetch(following)  # while the language model runs on inputs_embeds
        print(f"tokens {start} to {start + length}: {tuple(inputs_embeds.shape)}")
        ahead.wait()

print(f"encoded {len(encoded)} images for 3 places; {cache.stats()}")
