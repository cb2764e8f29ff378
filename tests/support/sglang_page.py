"""The tables of docs/sglang.md: the images that a tier contains, the reasons and the counts.

`python tests/support/sglang_page.py` prints the tables, and tests/adapters/sglang/test_page.py compares them
with the page.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields

from vllm_page import ITEMSIZE, MODELS, SIZES

from vitcache.adapters.sglang.counts import REASONS, SglangStats
from vitcache.adapters.sglang.model_cache import page_rows

TIERS = (100, 512, 2048, 8192)  # MiB
IMAGE = SIZES[0]
NAMES = ("Qwen2.5-VL-7B", "Qwen3-VL-8B", "Qwen3-VL-30B-A3B")


def size_table() -> list[str]:
    """Return the lines of the table of sizes: the images of 1280x720 pixels in a device tier."""
    models = [model for model in MODELS if model.name.startswith(NAMES)]
    lines = [
        f"| `SGLANG_VLM_CACHE_SIZE_MB` | {' | '.join(model.name for model in models)} |",
        "|---|" + "---|" * len(models),
    ]
    for tier in TIERS:
        cells = [str(tier)]
        for model in models:
            row_bytes = model.row_width * ITEMSIZE
            size = page_rows((tier << 20) // row_bytes)
            pages = (tier << 20) // (size * row_bytes)
            images = pages // math.ceil(model.num_rows(*IMAGE) / size)
            cells.append(f"{images}, pages of {size} {'row' if size == 1 else 'rows'}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def reason_table() -> list[str]:
    """Return the lines of the table of the steps that SGLang's own function computes."""
    return [
        "| reason | meaning |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in REASONS.items()),
    ]


def count_table() -> list[str]:
    """Return the lines of the table of `SglangStats`: the fields, and their texts in its docstring."""
    section = (SglangStats.__doc__ or "").split("----------\n", 1)[1]
    texts = dict(re.findall(r"^    (\w+)\n((?:        .+\n)+)", section, re.M))
    lines = ["| count | meaning |", "|---|---|"]
    for field in fields(SglangStats):
        lines.append(f"| `{field.name}` | {' '.join(texts[field.name].split())} |")
    return lines


if __name__ == "__main__":
    for table in (size_table, reason_table, count_table):
        print("\n".join(table()), end="\n\n")
