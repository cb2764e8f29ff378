"""The table ``worth`` of docs/tiers.md: the encode time from which on rows of a network are worth it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

IMAGE = "1280x720"
ELEMENT_BYTES = 2
NETWORKS = 10, 25, 100, 200  # Gbit/s
SHARE = 0.7  # of the line rate
WORTH = 0.5

# Encode times of `IMAGE` in milliseconds that were measured: Qwen3-VL-8B on an H100.
ENCODE_MS = {"Qwen3-VL-8B": 27.0}

# The elements of its rows without the three deepstack levels, as an engine needs them that drops the levels.
PLAIN = {"Qwen3-VL-8B": 4096}


def lines(path: Path) -> list[str]:
    """Return the lines of the table from the file that ``vitcache memory --json`` writes."""
    if not path.exists():
        return [f"No result file {path.name} exists yet."]
    report = json.loads(path.read_text())
    heads = ["model", "rows", "MB", "encode, ms", *(f"{network} Gbit/s" for network in NETWORKS)]
    table = [heads, ["---"] + ["--:"] * (len(heads) - 1)]
    for model in report["models"]:
        table.append(_line(model, model["model"], model["row_width"]))
        if model["model"] in PLAIN:
            table.append(_line(model, f"{model['model']}, no deepstack", PLAIN[model["model"]]))
    note = (
        f"One image of {IMAGE}; rows and bytes are those of `vitcache memory`, in bfloat16. Cells: the least "
        f"encode time in ms at which a fetch is worth it, for `worth={WORTH}` and {SHARE:.0%} of the line "
        "rate; in bold if the measured encode time is less. Encode time: measured on an H100; an empty cell "
        "was not measured."
    )
    return [*("| " + " | ".join(line) + " |" for line in table), "", note]


def _line(model: dict[str, Any], name: str, row_width: int) -> list[str]:
    [rows] = [image["rows"] for image in model["images"] if image["image"] == IMAGE]
    num_bytes = rows * row_width * ELEMENT_BYTES
    encode_ms = ENCODE_MS.get(model["model"])
    cells = [least_encode_ms(num_bytes, network) for network in NETWORKS]
    return [
        name,
        f"{rows:,}",
        f"{num_bytes / 1e6:.1f}",
        "" if encode_ms is None else f"{encode_ms:.0f}",
        *(
            f"**{cell:.1f}**" if encode_ms is not None and cell > encode_ms else f"{cell:.1f}"
            for cell in cells
        ),
    ]


def least_encode_ms(num_bytes: int, gbit_per_second: float) -> float:
    """Return the least encode time in milliseconds at which these bytes are worth a fetch."""
    return 1e3 * 8 * num_bytes / (SHARE * gbit_per_second * 1e9) / WORTH
