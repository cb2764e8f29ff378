"""``python -m vitcache.bench.plot FILE...``: write a PNG beside each result file of a bench.

Each bench has a `draw`, which uses `harness.figures`. Without a file, draws all result files of the
repository. Example: ``python -m vitcache.bench.plot bench/results/placement-*.json``.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcache.bench.harness import timeline
from vitcache.bench.harness.record import RESULTS, read_rows
from vitcache.terminal.result_file import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(path: Path) -> Path:
    """Draw one result file, or one trace of a timeline, into a PNG file beside it; return the PNG's path."""
    if path.name.endswith(timeline.SUFFIX):
        return timeline.draw(path)
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} has no ratio to draw")
    name = str(rows[0]["bench"])
    if not (name.isidentifier() and find_spec(f"vitcache.bench.claims.bench_{name}")):
        raise ValueError(f"{path}: no bench has the name {name[:50]!r}")
    target = path.with_suffix(".png")
    save_figure(draw(rows), target)
    return target


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure of a bench's results."""
    bench = import_module(f"vitcache.bench.claims.bench_{rows[0]['bench']}")
    figure: Figure = bench.draw(rows)
    return figure


def main() -> int:
    """Plot the files on the command line and print the path of each PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="result files, or traces of a timeline")
    files = parser.parse_args().files or sorted(RESULTS.glob("*-*.json"))
    for path in files:
        try:
            print(plot(path))
        except (OSError, ValueError) as error:
            print(f"plot: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
