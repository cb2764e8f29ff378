"""The tables of docs/vllm.md: sizes and load times of images by model, and the metrics.

`python tests/support/vllm_page.py` prints the tables, and tests/adapters/vllm/test_page.py compares them with
the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from vitcache.adapters.vllm.counts import COUNTERS

SIZES = ((1280, 720), (1920, 1080), (2560, 1440))  # width and height of the images
PAGE_ROWS = 16
ITEMSIZE = 2  # bfloat16
GIB = 1 << 30
BANDWIDTHS = (25, 50)  # GB/s of copies from pinned memory: about PCIe 4 and PCIe 5 with 16 lanes


@dataclass(frozen=True)
class Model:
    """One row of the table.

    Attributes
    ----------
    name
        Name of the model on Hugging Face.
    hidden
        `hidden_size` of the language model, from the model's config.json.
    vectors
        Vectors of this width that the encoder packs in a row: 1 + the length of `deepstack_visual_indexes`.
    num_rows
        Returns the rows of an image of a width and a height, by the rule of the model's image processor, with
        the numbers of its preprocessor_config.json.
    """

    name: str
    hidden: int
    vectors: int
    num_rows: Callable[[int, int], int]

    @property
    def row_width(self) -> int:
        return self.hidden * self.vectors

    def entry_bytes(self, num_rows: int) -> int:
        """Bytes of the pages of an entry, as `vitcache memory` and docs/sizing.md count them."""
        return math.ceil(num_rows / PAGE_ROWS) * PAGE_ROWS * self.row_width * ITEMSIZE

    def entries_per_gib(self, num_rows: int) -> int:
        return GIB // self.entry_bytes(num_rows)


def in_grid(factor: int, min_pixels: int, max_pixels: int) -> Callable[[int, int], int]:
    """One row per square of `factor` pixels, after the image is resized to a number of pixels in a range."""

    def num_rows(width: int, height: int) -> int:
        columns, lines = round(width / factor), round(height / factor)
        assert min_pixels <= columns * lines * factor**2 <= max_pixels, "no image of the table is resized"
        return columns * lines

    return num_rows


def in_tiles(side: int, most: int, rows_per_tile: int) -> Callable[[int, int], int]:
    """Square tiles in the grid whose shape is nearest to the image's, and one tile for the whole image.

    Among grids of one shape, a larger one is chosen while its area is less than twice the image's.
    """

    def num_rows(width: int, height: int) -> int:
        grids = [(x, y) for x in range(1, most + 1) for y in range(1, most + 1) if x * y <= most]
        nearest = min(abs(width / height - x / y) for x, y in grids)
        best = sorted(x * y for x, y in grids if abs(width / height - x / y) == nearest)
        tiles = max([best[0], *(each for each in best if width * height > side**2 * each / 2)])
        return (tiles + (tiles > 1)) * rows_per_tile

    return num_rows


MODELS = (
    Model("Qwen2.5-VL-7B-Instruct", 3584, 1, in_grid(28, 3136, 12845056)),
    Model("Qwen3-VL-8B-Instruct", 4096, 4, in_grid(32, 65536, 16777216)),
    Model("Qwen3-VL-30B-A3B-Instruct", 2048, 4, in_grid(32, 65536, 16777216)),
    Model("gemma-3-12b-it", 3840, 1, lambda width, height: 256),
    Model("InternVL3-8B", 3584, 1, in_tiles(448, 12, 256)),
)


def size_table() -> list[str]:
    """Return the lines of the table of sizes."""
    images = [f"{width}x{height}" for width, height in SIZES]
    lines = [
        "| model | `row_width` | bytes per row | " + " | ".join(images) + " |",
        "|---|---|---|" + "---|" * len(images),
    ]
    for model in MODELS:
        cells = [model.name, str(model.row_width), f"{model.row_width * ITEMSIZE / 1024:g} KiB"]
        for size in SIZES:
            rows = model.num_rows(*size)
            mib = model.entry_bytes(rows) / (1 << 20)
            cells.append(f"{rows} rows, {mib:.1f} MiB, {model.entries_per_gib(rows)}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def load_table() -> list[str]:
    """Return the lines of the table of load times, for an image of 1920x1080 pixels."""
    lines = [
        "| model | " + " | ".join(f"load at {each} GB/s" for each in BANDWIDTHS) + " |",
        "|---|" + "---|" * len(BANDWIDTHS),
    ]
    for model in MODELS:
        num_bytes = model.num_rows(1920, 1080) * model.row_width * ITEMSIZE
        times = [f"{num_bytes / (each * 1e6):.2f} ms" for each in BANDWIDTHS]
        lines.append(f"| {model.name} | {' | '.join(times)} |")
    return lines


def metric_table() -> list[str]:
    """Return the lines of the table of metrics."""
    lines = ["| metric | label | meaning |", "|---|---|---|"]
    families: dict[str, dict[str, None]] = {}
    for counter in COUNTERS.values():
        labels = families.setdefault(counter.family, {})
        labels |= dict.fromkeys(f'`{name}="{value}"`' for name, value in counter.labels)
    texts = {counter.family: counter.text for counter in COUNTERS.values()}
    for family, found in families.items():
        # The values of one name are together, those of the first name first.
        names = [label.partition("=")[0] for label in found]
        labels = sorted(found, key=lambda label: names.index(label.partition("=")[0]))
        lines.append(f"| `vllm:vitcache_{family}_total` | {', '.join(labels)} | {texts[family]} |")
    return [line.replace("|  |", "| |") for line in lines]


if __name__ == "__main__":
    for table in (size_table, load_table, metric_table):
        print("\n".join(table()), end="\n\n")
