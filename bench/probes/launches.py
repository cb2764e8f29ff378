"""Launches: kernels that are loaded for ids at odd offsets, and the host's time to issue a placement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from vitcache import EmbeddingCache, embed_tokens, scatter_embeddings
from vitcache.bench.probes.findings import Finding, Subject
from vitcache.bench.traffic.simulation import PAGE_ROWS

# Targets of the design in microseconds; the bench `scatter` judges them.
ONE_SPAN_US, PACKED_US, LEASES_US = 30, 45, 150
GAP = 2  # text tokens after each image


def odd_ids(subject: Subject) -> Iterator[Finding]:
    """The first call at each offset of the ids: after the first of all, no call may load a kernel."""
    from vitcache.triton_kernels.embed_rows import embed_kernel

    hidden, num_tokens, num_rows = subject.size((4096, 1000, 880), (64, 12, 4))
    options = {"dtype": torch.bfloat16, "device": subject.device}
    weight, image = torch.zeros(64, hidden, **options), torch.ones(num_rows, hidden, **options)
    known = None
    for dtype in (torch.int64, torch.int32):
        ids = torch.zeros(num_tokens + 4, dtype=dtype, device=subject.device)
        for offset in (0, 1, 3):
            before = len(embed_kernel.variants)
            begin = time.perf_counter()
            embed_tokens(ids[offset : offset + num_tokens], weight, [image], [0])
            subject.synchronize()
            ms = (time.perf_counter() - begin) * 1e3
            after = len(embed_kernel.variants)
            item = f"first call, {str(dtype).removeprefix('torch.')} ids at {offset * ids.itemsize} bytes"
            text = f"kernels loaded: {before} before, {after} after"
            yield Finding.number(item, ms, "ms", text)
            if known is None:
                known = after
    yield Finding.of("no kernel is loaded for an offset", len(embed_kernel.variants) == known)


def host_time(subject: Subject) -> Iterator[Finding]:
    """The host's time to issue one span, 512 packed images, and 512 leases that no stream has used."""
    hidden, rows = subject.size((4096, 880), (64, 5))
    options = {"dtype": torch.bfloat16, "device": subject.device}
    out, image = torch.zeros(rows + 8, hidden, **options), torch.ones(rows, hidden, **options)

    def measure(
        item: str,
        target_us: int,
        call: Callable[[Any], object],
        prepare: Callable[[], Any] = lambda: None,
        done: Callable[[Any], object] = lambda argument: None,
    ) -> Finding:
        text = f"target {target_us} us" if subject.on_gpu else ""
        return Finding.number(item, subject.host_us(call, prepare, done), "us", text)

    yield measure("issue one span", ONE_SPAN_US, lambda _: scatter_embeddings(out, [image], [5]))
    count, rows, hidden = subject.size((512, 64, 3584), (6, 4, 64))
    packed = torch.ones(count * rows, hidden, **options)
    out = torch.zeros(count * (rows + GAP), hidden, **options)
    spans = np.array([(number * (rows + GAP), rows, number * rows) for number in range(count)], np.int64)
    yield measure(f"issue {count} packed", PACKED_US, lambda _: scatter_embeddings(out, packed, spans))
    page_bytes = PAGE_ROWS * hidden * torch.bfloat16.itemsize
    pages = count * -(-rows // PAGE_ROWS)
    cache = EmbeddingCache(
        hidden, dtype=torch.bfloat16, device=subject.device, device_bytes=pages * page_bytes
    )
    keys = [number.to_bytes(32, "little") for number in range(count)]
    for key, part in zip(keys, packed.split(rows), strict=True):
        cache.put(key, part)
    starts = spans[:, 0].tolist()
    yield measure(
        f"issue {count} fresh leases",
        LEASES_US,
        lambda leases: scatter_embeddings(out, leases, starts),
        lambda: cache.get_many(keys),
        lambda leases: [lease.release() for lease in leases],
    )
    subject.synchronize()
    cache.close()
