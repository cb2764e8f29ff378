"""Claim: no other block shape places rows faster than the shape in `triton_kernels/blocks.json`.

Each shape is measured with the scatter kernel only; the row table is written before. The limit is a copy of
the same bytes. A shape with more threads than accesses of 16 bytes is omitted, as its accesses are narrower.
`python -m vitcache.bench.harness.tune` writes the fastest shapes to the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import starmap

import torch

from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

NAME = "blocks"
# Target of the design: COPY_FACTOR times the copy of the same bytes, plus TABLE_US for the row table.
COPY_FACTOR, TABLE_US = 1.015, 2.0
# Elements of bfloat16 per warp: one access of 16 bytes per lane, and four.
FEWEST, MOST = 256, 1024


@dataclass(frozen=True)
class BlockCase:
    """Rows of one width, and the shapes to try."""

    hidden: int
    num_rows: int
    blocks: tuple[int, ...] = (1024, 2048, 4096, 8192)
    warps: tuple[int, ...] = (2, 4, 8, 16)

    @property
    def name(self) -> str:
        """The row width."""
        return str(self.hidden)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Each block with each suitable number of warps."""
        return [
            (block, warps)
            for block in self.blocks
            for warps in self.warps
            if FEWEST <= block // warps <= MOST
        ]


CASES = {
    "full": [BlockCase(hidden, 28_160) for hidden in (2048, 3584, 3840, 4096, 5120, 8192)],
    "smoke": [BlockCase(64, 4, (256, 512), (1,))],
}


def run_case(case: BlockCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure every shape; yields the name of each shape before it runs."""
    from vitcache.placement.destination import Destination
    from vitcache.placement.placement import Placement
    from vitcache.rows import KINDS
    from vitcache.triton_kernels.blocks import BlockShape, block_shape
    from vitcache.triton_kernels.scatter_rows import launch_scatter_rows

    source = torch.randn(case.num_rows, case.hidden, device=timer.device, dtype=torch.bfloat16)
    target = torch.full_like(source, float("nan"))
    yield "copy"
    copied = torch.empty_like(source)
    copy = timer.device_us(lambda: copied.copy_(source))
    moved = 2 * source.nbytes
    recorder.add(case.name, "copy", "device_us", "us", copy, bytes_moved=moved)
    destination = Destination("target", target, None)
    placement = Placement(destination, [source], [0])
    table = torch.empty(2 * case.num_rows, dtype=torch.int64, pin_memory=timer.device.type == "cuda")
    placement.native.write_row_table(KINDS[source.dtype], table.data_ptr())
    chosen = block_shape(case.hidden, timer.device)
    for shape in starmap(BlockShape, case.shapes):
        label = f"{shape.block}x{shape.num_warps}"
        yield label

        def run(shape: BlockShape = shape) -> None:
            launch_scatter_rows(table, target, None, source.dtype, None, aligned=True, shape=shape)

        target.fill_(float("nan"))
        run()
        if not torch.equal(target, source):
            raise RuntimeError(f"block shape {label} placed wrong rows: it gets no number")
        measured = timer.device_us(run)
        is_chosen = shape == chosen and timer.device.type == "cuda"
        recorder.add(
            case.name,
            label,
            "device_us",
            "us",
            measured,
            bytes_moved=moved,
            against=("copy", copy.value),
            target=COPY_FACTOR if is_chosen else None,
            limit=COPY_FACTOR * copy.value + TABLE_US if is_chosen else None,
        )
