"""``python -m vitcache.bench.host_time``: host time to issue a placement on a GPU, measured without one.

Lowering and checks are real, and so are Triton's binder and its compilation for sm_90; only the launch does
nothing. Tensors are on the CPU, so these are lower bounds. What is missing: the driver's part of a launch,
and what is asked of torch.cuda (the current device and stream, whether it captures, events behind leases).
The bench `scatter` measures the whole on a GPU.
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

HIDDEN = 64
PAGE_ROWS = 64
CASES = ((1, 880), (512, 64))  # items, and rows of each
REPEATS, WARM_UP = 300, 20
ARCHITECTURE = 90


class Scene(NamedTuple):
    """One prompt with images, in the forms that a call takes them."""

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
        """A lease on every item, as a step takes them: no stream has used them."""
        return [self.cache.get(key) for key in self.keys]


class Driver:
    """What Triton asks its driver for, answered as by a GPU that is there."""

    launcher_cls = None

    @staticmethod
    def is_active() -> bool:
        """Whether this is the driver to use."""
        return True

    def get_current_device(self) -> int:
        """The device's number."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The handle of a stream that nothing is launched on."""
        return 0

    def get_current_target(self) -> Any:
        """What is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_active_torch_device(self) -> torch.device:
        """Where the tensors are."""
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """What stands in for `torch.cuda`."""
        return torch.cpu

    def map_python_to_cpp_type(self, name: str) -> str:
        """A type's name, as it came."""
        return name


def without_launches() -> list[object]:
    """Let Triton compile for a GPU and launch nothing; return a list that gets an entry per launch."""
    os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined
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
    """`items` images of `rows` rows, two text tokens apart."""
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
    """Microseconds of many calls, ascending; `prepare` comes before each and is not counted."""
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
    """Whole calls, then what they are made of."""
    from vitcache.placement import gpu_kernels
    from vitcache.placement.destination import Destination
    from vitcache.placement.placement import Placement

    s, leases = scene, scene.leases()
    scatter, embed = vitcache.scatter_embeddings, vitcache.embed_tokens
    yield "scatter, packed", measure(lambda: scatter(s.out, s.packed, s.table))
    yield "scatter, tensors", measure(lambda: scatter(s.out, s.rows, s.spans))
    yield "scatter, leases in use", measure(lambda: scatter(s.out, leases, s.spans))
    yield "scatter, fresh leases", measure(lambda fresh: scatter(s.out, fresh, s.spans), s.leases)
    yield "embed, packed", measure(lambda: embed(s.ids, s.weight, s.packed, s.table))
    yield "embed, tensors", measure(lambda: embed(s.ids, s.weight, s.rows, s.spans))
    target = Destination("out", s.out, None)
    packed, tensors = Placement(target, s.packed, s.table), Placement(target, s.rows, s.spans)
    leased = Placement(target, leases, s.spans)
    yield "  Destination", measure(lambda: Destination("out", s.out, None))
    yield "  Placement, packed", measure(lambda: Placement(target, s.packed, s.table))
    yield "  Placement, tensors", measure(lambda: Placement(target, s.rows, s.spans))
    yield "  Placement.use_leases", measure(leased.use_leases)
    yield "  gpu_kernels, packed", measure(lambda: gpu_kernels.scatter_rows(target, packed, None))
    yield "  gpu_kernels, tensors", measure(lambda: gpu_kernels.scatter_rows(target, tensors, None))
    table = torch.zeros(2 * len(s.packed), dtype=torch.int64)
    launch = gpu_kernels.launch_scatter_rows
    yield (
        "    launch_scatter_rows",
        measure(lambda: launch(table, s.out, None, torch.bfloat16, None, aligned=True)),
    )
    yield "    write_row_table", measure(lambda: packed.native.write_row_table(2, table.data_ptr()))


@torch.no_grad()
def main() -> None:
    """Print the median and the lower decile of every measurement."""
    launches = without_launches()
    import triton

    print(f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}")
    for items, rows in CASES:
        print(f"{f'{items} x {rows} rows, us':<28} {'median':>8} {'p10':>8}")
        for label, times in measure_scene(make_scene(items, rows)):
            print(f"{label:<28} {times[len(times) // 2]:>8.1f} {times[len(times) // 10]:>8.1f}")
    if not launches:
        raise RuntimeError("no kernel was launched: these are numbers of something else")


if __name__ == "__main__":
    main()
