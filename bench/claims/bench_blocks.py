"""Claim: no other block shape places rows faster than the shape in `triton_kernels/blocks.json`.

Each shape is measured with the scatter kernel only; the row table is written before. The limit is a copy of
the same bytes. A shape with more threads than accesses of 16 bytes is omitted, as its accesses are narrower.
`python -m vitcache.bench.harness.tune` writes the fastest shapes to the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING

import torch

from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def draw(rows: figures.Rows) -> Figure:
    """Draw each block shape's time as a multiple of the copy, and name the fastest and the chosen shape."""
    shapes = [row for row in rows if row["ratio"] is not None]
    widths = list(dict.fromkeys(row["case"] for row in shapes))
    figure, [[axes]] = figures.open_figure(height=max(1.4, 0.8 + 0.45 * len(widths)))
    looks = figures.styles(("chosen, in blocks.json", "fastest", "all other shapes"))
    worse = []
    for place, width in enumerate(widths):
        of_width = [row for row in shapes if row["case"] == width]
        fastest = min(of_width, key=lambda row: row["ratio"])
        for row in sorted(of_width, key=lambda row: row is fastest):
            is_chosen = row["target"] is not None
            label = (
                "fastest" if row is fastest else "chosen, in blocks.json" if is_chosen else "all other shapes"
            )
            axes.plot(row["ratio"], place, **looks[label].dot(), label=label)
            if is_chosen:
                worse.append(row["ratio"] / fastest["ratio"])
                axes.plot(row["ratio"], place, **looks["chosen, in blocks.json"].dot())
        axes.annotate(
            fastest["contender"], (fastest["ratio"], place), (0, 8), textcoords="offset points", size=8
        )
    figures.target(axes, 1, " 1 = copy", upright=True)
    axes.set_yticks(range(len(widths)), widths)
    axes.set(
        ylim=(len(widths) - 0.5, -0.7),
        xlabel="time on the device / copy of the same bytes (less is better)",
        ylabel="elements of a row",
    )
    fastest_of = [min(row["ratio"] for row in shapes if row["case"] == width) for width in widths]
    title = f"The fastest block shape of each row width takes {figures.span(fastest_of)} times a copy"
    if worse:
        title += f"; the chosen one takes {figures.span(worse)} times the fastest"
    note = "A shape is named by its block and its number of warps. A marker is the median of a shape."
    return figures.finish(figure, rows, title, note)
