"""``python -m vitcache.bench.host_time``: host time to issue a placement on a GPU, measured without a GPU.

Checks, lowering, Triton's binder and its compilation for sm_90 run as on a GPU. Only the launch itself does
nothing. The tensors are on the CPU. The times are lower bounds: they leave out the driver's part of a launch
and the calls to torch.cuda (current device and stream, whether the stream is captured, events of leases). The
bench `scatter` measures the complete host time on a GPU.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vitcache
from vitcache import EmbeddingCache, Lease, Span
from vitcache.bench.traffic.simulation import PAGE_ROWS

HIDDEN = 64
CASES = ((1, 880), (512, 64))  # items, rows of each item
# Microseconds of the medians by number of items and form of the rows, on the machine where one span took
# 36 us with Triton's binder (docs/decisions.md). On another machine, compare two commits.
TARGETS = {
    (1, "packed"): 27,
    (1, "tensors"): 27,
    (1, "leases"): 27,
    (512, "packed"): 40,
    (512, "tensors"): 180,
    (512, "leases"): 120,
}
REPEATS, WARM_UP = 300, 20
ARCHITECTURE = 90


class Scene(NamedTuple):
    """One prompt with images, in each form that a placement accepts."""

    out: Tensor
    ids: Tensor
    weight: Tensor
    packed: Tensor
    table: np.ndarray
    rows: list[Tensor]
    spans: list[Span]
    cache: EmbeddingCache
    keys: list[bytes]

    def leases(self) -> list[Lease | None]:
        """Return a new lease on every item; no stream has used these leases."""
        return [self.cache.get(key) for key in self.keys]


class Driver:
    """A driver for Triton that reports a GPU."""

    launcher_cls = None

    @staticmethod
    def is_active() -> bool:
        """Tell Triton to use this driver."""
        return True

    def get_current_device(self) -> int:
        """Return the number of the device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the handle of a stream; no kernel is launched on it."""
        return 0

    def get_current_target(self) -> Any:
        """Return the target of compilation."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_active_torch_device(self) -> torch.device:
        """Return the device of the tensors."""
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """Return the module that takes the place of `torch.cuda`."""
        return torch.cpu

    def map_python_to_cpp_type(self, name: str) -> str:
        """Return the type's name unchanged."""
        return name


def without_launches() -> list[object]:
    """Let Triton compile for a GPU and skip every launch; return a list that grows by one per launch."""
    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads this variable when a kernel is defined
    from triton.compiler import CompiledKernel
    from triton.runtime import driver

    from vitcache.placement import dispatch

    launches: list[object] = []
    driver.set_active(Driver())
    CompiledKernel._init_handles = lambda kernel: None
    CompiledKernel.run = property(lambda kernel: lambda *arguments: launches.append(None))
    dispatch.uses_kernels = lambda device: True
    return launches


def make_scene(items: int, rows: int) -> Scene:
    """Make a prompt with `items` images of `rows` rows, and two text tokens between two images."""
    packed = torch.zeros(items * rows, HIDDEN, dtype=torch.bfloat16)
    starts = [2 + item * (rows + 2) for item in range(items)]
    num_tokens = items * (rows + 2) + 4
    pages = items * -(-rows // PAGE_ROWS)
    cache = EmbeddingCache(HIDDEN, device="cpu", device_bytes=pages * PAGE_ROWS * HIDDEN * 2)
    keys = [item.to_bytes(32, "little") for item in range(items)]
    parts = list(packed.clone().split(rows))
    for key, part in zip(keys, parts, strict=True):
        cache.put(key, part)
    return Scene(
        out=torch.zeros(num_tokens, HIDDEN, dtype=torch.bfloat16),
        ids=torch.zeros(num_tokens, dtype=torch.int64),
        weight=torch.zeros(10, HIDDEN, dtype=torch.bfloat16),
        packed=packed,
        table=np.array([(start, rows, item * rows) for item, start in enumerate(starts)], np.int64),
        rows=parts,
        spans=[Span(start, rows) for start in starts],
        cache=cache,
        keys=keys,
    )


def measure(call: Callable[[], object], prepare: Callable[[], Any] | None = None) -> list[float]:
    """Return the microseconds of `REPEATS` calls, sorted.

    `prepare` runs before each call, which gets its result; the time of `prepare` is not counted.
    """
    times = []
    for repeat in range(WARM_UP + REPEATS):
        argument = () if prepare is None else (prepare(),)
        begin = time.perf_counter()
        call(*argument)
        if repeat >= WARM_UP:
            times.append((time.perf_counter() - begin) * 1e6)
        del argument
    return sorted(times)


def measure_scene(scene: Scene) -> Iterator[tuple[str, list[float]]]:
    """Measure whole calls, then their parts, which have indented labels."""
    from vitcache.placement import gpu_kernels
    from vitcache.placement.destination import Destination
    from vitcache.placement.placement import Placement

    out, spans, used_leases = scene.out, scene.spans, scene.leases()
    ids, weight = scene.ids, scene.weight
    scatter, embed = vitcache.scatter_embeddings, vitcache.embed_tokens
    yield "scatter, packed", measure(lambda: scatter(out, scene.packed, scene.table))
    yield "scatter, tensors", measure(lambda: scatter(out, scene.rows, spans))
    yield "scatter, used leases", measure(lambda: scatter(out, used_leases, spans))
    yield "scatter, fresh leases", measure(lambda new_leases: scatter(out, new_leases, spans), scene.leases)
    yield "embed, packed", measure(lambda: embed(ids, weight, scene.packed, scene.table))
    yield "embed, tensors", measure(lambda: embed(ids, weight, scene.rows, spans))
    target = Destination("out", out, None)
    packed, tensors = Placement(target, scene.packed, scene.table), Placement(target, scene.rows, spans)
    leased = Placement(target, used_leases, spans)
    yield "  Destination", measure(lambda: Destination("out", out, None))
    yield "  Placement, packed", measure(lambda: Placement(target, scene.packed, scene.table))
    yield "  Placement, tensors", measure(lambda: Placement(target, scene.rows, spans))
    yield "  Placement.use_leases", measure(leased.use_leases)
    yield "  gpu_kernels, packed", measure(lambda: gpu_kernels.scatter_rows(target, packed, None))
    yield "  gpu_kernels, tensors", measure(lambda: gpu_kernels.scatter_rows(target, tensors, None))
    table = torch.zeros(2 * len(scene.packed), dtype=torch.int64)
    launch = gpu_kernels.launch_scatter_rows
    yield (
        "    launch_scatter_rows",
        measure(lambda: launch(table, out, None, torch.bfloat16, None, aligned=True)),
    )
    yield "    write_row_table", measure(lambda: packed.native.write_row_table(2, table.data_ptr()))


@torch.no_grad()
def main() -> None:
    """Print the median and the 10th percentile of every measurement, and the target of each whole call."""
    launches = without_launches()
    import triton

    print(f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}")
    for items, rows in CASES:
        print(f"{f'{items} x {rows} rows, us':<28} {'median':>8} {'p10':>8} {'target':>8}")
        for label, times in measure_scene(make_scene(items, rows)):
            target = next(
                (str(us) for (count, form), us in TARGETS.items() if count == items and form in label), ""
            )
            target = "" if label.startswith(" ") else target
            numbers = f"{times[len(times) // 2]:>8.1f} {times[len(times) // 10]:>8.1f}"
            print(f"{label:<28} {numbers} {target:>8}".rstrip())
    if not launches:
        raise RuntimeError(
            "expected at least one kernel launch, got none: these are not times of a placement"
        )


if __name__ == "__main__":
    main()
