"""Write the fastest block shapes of ``blocks-<device>.json`` files to the table that the kernels read.

``python -m vitcache.bench.harness.tune bench/results/blocks-*.json``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitcache.bench.harness.record import read_rows
from vitcache.terminal.result_file import replace_file
from vitcache.triton_kernels.blocks import TABLE


def tune(files: list[Path], table: Path = TABLE) -> dict[str, dict[str, list[int]]]:
    """Update `table` from result files and return it. Entries of other devices and widths do not change."""
    shapes: dict[str, dict[str, list[int]]] = json.loads(table.read_text())
    for path in files:
        best: dict[tuple[str, str], tuple[float, list[int]]] = {}
        for row in read_rows(path):
            if row["bench"] == "blocks" and row["contender"] != "copy":
                shape = [int(number) for number in row["contender"].split("x")]
                key = (row["device"], row["case"])
                best[key] = min(best.get(key, (float("inf"), [])), (row["value"], shape))
        for (device, hidden), (_, shape) in best.items():
            shapes.setdefault(device, {})[hidden] = shape
    replace_file(table, json.dumps(shapes, indent=2, sort_keys=True) + "\n")
    return shapes


def main() -> None:
    """Tune from the files on the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for device, shapes in tune(parser.parse_args().files).items():
        print(device, shapes)


if __name__ == "__main__":
    main()
