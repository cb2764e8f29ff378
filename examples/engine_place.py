"""An engine's step with `place`: the engine's own embedding layer writes the text rows, vitcache the images'.

Runs on a GPU or the CPU. `embedding_layer` stands for a table that is sharded, scaled or a module of its own,
and `vision_tower` for the engine's encoder. `step` is all that an engine adds to its forward pass.
"""

import torch

import vitcache

hidden, image_token = 64, 999
device = "cuda" if torch.cuda.is_available() else "cpu"
embedding_layer = torch.nn.Embedding(1000, hidden, device=device, dtype=torch.bfloat16)
cache = vitcache.EmbeddingCache(hidden, device=device, device_bytes="1 MiB")


def vision_tower(features: list[torch.Tensor], items: list[vitcache.Item]) -> list[torch.Tensor]:
    """Encode one feature per item, of shape (n, 32) and on the device: one row per four patches."""
    print("encode", [item.context for item in items])
    return [patches.bfloat16().reshape(-1, 128)[:, :hidden] for patches in features]


@torch.no_grad()
def step(chunks: list[vitcache.Chunk], input_ids: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Return `inputs_embeds` of a batch, and the requests to abort: those with an item that failed."""
    inputs_embeds = embedding_layer(input_ids)
    result = pipeline.place(chunks, inputs_embeds)
    return inputs_embeds, [error.chunk for error in result.errors]


image, broken = torch.randn(40, 32), torch.randn(12, 32)  # 40 patches are 10 rows; 12 are too few
requests = [
    vitcache.Items([vitcache.Item(pixels, vitcache.Span(2, 10), num_rows=10, context=name)])
    for name, pixels in (("cat.png", image), ("dog.png", broken))
]
with vitcache.VisionPipeline(
    vision_tower, cache, namespace=vitcache.Namespace("my-model", dtype="bfloat16")
) as pipeline:
    for turn in range(2):
        chunks = [
            vitcache.Chunk(items, start=0, length=16, token_offset=16 * i) for i, items in enumerate(requests)
        ]
        input_ids = torch.full((16 * len(requests),), image_token, device=device)
        inputs_embeds, failed = step(chunks, input_ids)
        print(f"turn {turn}: {tuple(inputs_embeds.shape)}, failed requests: {failed}")
        requests = [items for i, items in enumerate(requests) if i not in failed]
