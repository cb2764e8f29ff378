"""``python -m vitcache.bench.plot FILE...``: write a PNG beside each result file of a bench.

A bench may define its own `draw`. For all other benches, bars show each contender's value as a multiple of
the limit, which is the line at 1. Example: ``python -m vitcache.bench.plot bench/results/placement-*.json``.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

from vitcache.bench.harness import timeline
from vitcache.bench.harness.ratios import draw_ratios


def plot(path: Path) -> Path:
    """Draw one result file, or one trace of a timeline, into a PNG file beside it; return the PNG's path."""
    if path.name.endswith(timeline.SUFFIX):
        return timeline.draw(path)
    rows = json.loads(path.read_text())
    if not rows:
        raise ValueError(f"{path} has no ratio to draw")
    bench = import_module(f"vitcache.bench.claims.bench_{rows[0]['bench']}")
    figure = getattr(bench, "draw", draw_ratios)(rows)
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=120)
    return target


def main() -> None:
    """Plot the files on the command line and print the path of each PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        print(plot(path))


if __name__ == "__main__":
    main()
