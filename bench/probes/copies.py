"""Copies from the host: pinned memory by the copy engine and by the kernel, the calibration, and the ring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from vitcache import PinnedRing, scatter_embeddings
from vitcache.bench.harness.timing import Timer
from vitcache.bench.probes.findings import LEFT_OUT, Finding, Subject
from vitcache.placement import host_blocks
from vitcache.placement.calibration import calibrate_cuda

REPEATS = 5
# Threads of the ring, and MiB of a piece.
RINGS = ((12, 4), (12, 16), (8, 4))


def host_rows(subject: Subject) -> Iterator[Finding]:
    """GB/s of rows in pinned memory: by one copy, a copy per image, the kernel, and after calibration."""
    images, rows, hidden = subject.size((32, 880, 4096), (3, 4, 64))
    pool = torch.ones(images * rows, hidden, dtype=torch.bfloat16, pin_memory=subject.on_gpu)
    out = torch.zeros(images * (rows + 2), hidden, dtype=torch.bfloat16, device=subject.device)
    parts, starts = list(pool.split(rows)), [image * (rows + 2) for image in range(images)]
    timer = Timer(subject.device, subject.size(REPEATS, 1))

    def rate(item: str, call: Callable[[], object], text: str = "") -> Finding:
        return Finding.number(item, pool.nbytes / timer.device_us(call).value / 1e3, "GB/s", text)

    def copy_blocks() -> None:
        for start, part in zip(starts, parts, strict=True):
            out[start : start + rows].copy_(part, non_blocking=True)

    def place() -> None:
        scatter_embeddings(out, parts, starts)

    yield rate("pinned copy", lambda: out[: len(pool)].copy_(pool, non_blocking=True))
    yield rate("a copy per image", copy_blocks, f"blocks of {parts[0].nbytes >> 10} KiB")
    before = host_blocks.crossover_bytes(subject.device)
    yield rate("placement, not calibrated", place, f"crossover {before}; None: the kernel reads all rows")
    if not subject.on_gpu:
        yield Finding("calibration", LEFT_OUT, text="only a GPU is calibrated")
        return
    begin = time.perf_counter()
    measured = calibrate_cuda(subject.device)
    seconds = time.perf_counter() - begin
    yield Finding.number("calibration", seconds, "s", f"measured {measured}")
    again = calibrate_cuda(subject.device)
    yield Finding.of("calibration runs once", again == measured, f"the second call returned {again}")
    known = host_blocks.crossover_bytes(subject.device)
    yield rate("placement, calibrated", place, f"crossover {known} bytes")


def ring(subject: Subject) -> Iterator[Finding]:
    """GB/s of the ring by threads and size of a piece, from pageable memory; and the copied values."""
    count = subject.size(88 << 20, 1 << 16)  # float32 values: four images of 2560x1440
    source = torch.arange(count, dtype=torch.float32)
    target = torch.empty_like(source, device=subject.device)
    for threads, mebibytes in subject.size(RINGS, RINGS[:1]):
        target.zero_()
        capacity = max(source.nbytes, 2 * mebibytes << 20)
        with PinnedRing(
            capacity, num_threads=subject.size(threads, 2), piece_bytes=mebibytes << 20
        ) as pinned:
            rates = []
            for _ in range(REPEATS):
                subject.synchronize()
                begin = time.perf_counter()
                pinned.copy_to(target, source).synchronize()
                rates.append(source.nbytes / (time.perf_counter() - begin) / 1e9)
        item = f"ring, {threads} threads, {mebibytes} MiB"
        if torch.equal(target[::4097].cpu(), source[::4097]):
            yield Finding.number(item, max(rates), "GB/s", f"first copy {rates[0]:.1f}")
        else:
            yield Finding.of(item, False, "the ring copied wrong values")
