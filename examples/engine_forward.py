"""An engine's forward pass: look images up, encode the missing ones, and build inputs_embeds in one pass.

Runs on a GPU or the CPU. `encode_image` stands for the engine's encoder.
"""

import torch

import vitcache

hidden, vocabulary, image_token = 64, 1000, 999
device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.randn(vocabulary, hidden, device=device).bfloat16()
cache = vitcache.EmbeddingCache(hidden, device=device, device_bytes=1 << 20, host_bytes=4 << 20)
namespace = vitcache.Namespace("my-model", revision="main", dtype="bfloat16")


def encode_image(pixels: torch.Tensor) -> torch.Tensor:
    """Encode patches of shape (n, 32): one row per four patches."""
    return pixels.to(device).bfloat16().reshape(-1, 128)[:, :hidden].contiguous()


def find_rows(image: torch.Tensor) -> torch.Tensor | vitcache.Lease:
    """Look the image up, or encode it. If another thread is encoding it, wait for that thread."""
    key = vitcache.content_key(image, namespace=namespace)
    while True:
        lease = cache.get(key, num_rows=len(image) // 4)
        if lease is not None:
            return lease
        with cache.claim(key) as claim:
            if not claim.is_mine:
                claim.wait()
            elif key not in cache:
                rows = encode_image(image)
                claim.put(rows)
                return rows


def forward(input_ids: torch.Tensor, images: list[torch.Tensor]) -> torch.Tensor:
    spans = vitcache.spans_from_token_ids(input_ids, image_token, [len(image) // 4 for image in images])
    rows = [find_rows(image) for image in images]
    inputs_embeds = vitcache.embed_tokens(input_ids.to(device), weight, rows, spans)
    for image_rows in rows:
        if isinstance(image_rows, vitcache.Lease):
            image_rows.release()
    return inputs_embeds


images = [torch.randn(40, 32), torch.randn(24, 32)]
prompt = torch.tensor([1, 2, *[image_token] * 10, 3, *[image_token] * 6, 4])
first, second = forward(prompt, images), forward(prompt, images)
print(f"equal: {torch.equal(first, second)}; {cache.stats()}")
