"""``python -m vitcache.bench.plot FILE...``: draw benches' JSON files.

Bars per case and contender as multiples of the limit, which is the line at 1, unless the bench has a `draw`
of its own. ``python -m vitcache.bench.plot bench/results/placement-*.json`` writes a PNG beside each file.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

from vitcache.bench.harness import timeline
from vitcache.bench.harness.ratios import draw_ratios


def plot(path: Path) -> Path:
    """Write ``<file>.png`` from the rows of a bench, or the trace of a timeline; nothing else is read."""
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
    """Plot every file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        print(plot(path))


if __name__ == "__main__":
    main()
