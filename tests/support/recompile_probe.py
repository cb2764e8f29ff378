"""Print how many kernels Triton compiles in `warm_up`, and then in each of many calls, one number a line.

A separate program, as `codegen_probe`: the kernels are compiled for a GPU, but nothing is launched.
"""

from __future__ import annotations

import torch
import triton

from vitcache import PlacementTable, embed_tokens, scatter_embeddings, warm_up
from vitcache.bench.host_time import without_launches

launches = without_launches()
compiled: list[None] = []
triton.knobs.runtime.jit_post_compile_hook = lambda **_: compiled.append(None)

HIDDEN = 72  # a row of bfloat16 is 9 x 16 bytes, a plane of 21 tokens is not a multiple of 32 elements
weight = torch.zeros(10, HIDDEN, dtype=torch.bfloat16)
rows = torch.zeros(4, HIDDEN, dtype=torch.bfloat16)
deep_rows = torch.zeros(4, 4 * HIDDEN, dtype=torch.bfloat16)
ids = torch.zeros(64, dtype=torch.int64)
out = torch.zeros(64, HIDDEN, dtype=torch.bfloat16)
wide = torch.zeros(5, HIDDEN + 4, dtype=torch.bfloat16)


def deepstack(num_tokens: int) -> torch.Tensor:
    return torch.zeros(3, num_tokens, HIDDEN, dtype=torch.bfloat16)


def report(name: str) -> None:
    print(f"{name}: {len(compiled)}", flush=True)
    compiled.clear()


with torch.no_grad():
    warm_up("cpu", hidden=HIDDEN, levels=3, store=False)
    report("warm_up")
    for tokens in (1, 15, 16, 20, 21):
        for first in (0, 1, 2, 3):
            embed_tokens(ids[first : first + tokens], weight, [], [])
            embed_tokens(ids.int()[first : first + tokens], weight, [], [])
    report("ids of any dtype and offset")
    for tokens in (20, 21, 22):
        embed_tokens(ids[:tokens], weight, [deep_rows], [2], deepstack=deepstack(tokens))
    report("deepstack of any number of tokens")
    embed_tokens(ids[:20], weight, [rows], [2], out=out[3:23])
    embed_tokens(ids[:20], weight[:1], [rows[:1]], [2])
    scatter_embeddings(out[::2], [rows], [2])
    scatter_embeddings(out, [wide[:4, :HIDDEN]], [2])
    scatter_embeddings(out[:1], [rows[:1]], [0])
    report("any stride and alignment")
    table = PlacementTable(32, device="cpu").update([rows], [2])
    scatter_embeddings(out, table, None)
    embed_tokens(ids[1:22], weight, table, None)
    report("a table")
    scatter_embeddings(out, [rows.float()], [2])
    report("a dtype that warm_up was not told")
    print(f"launches: {len(launches)}")
