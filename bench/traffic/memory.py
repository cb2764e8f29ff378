"""``python -m vitcache memory``: how much memory a trace needs, by what each size would have saved."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vitcache.bench.traffic.simulation import PAGE_ROWS, bound, footprint, simulate
from vitcache.bench.traffic.trace_file import load_trace
from vitcache.bench.traffic.traces import TRACES, Access, make_trace
from vitcache.cache.policies import POLICIES

LENGTH = 20_000  # accesses of a trace that is made up
HALVINGS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--trace",
        required=True,
        metavar="FILE",
        help='a file of lines {"key": "cat.jpg", "tokens": 405, "encode_ms": 27.1}, the last of which may be '
        f"left out, or a made-up one: {', '.join(TRACES)}",
    )
    parser.add_argument(
        "--row-bytes",
        type=_count,
        default=8192,
        metavar="N",
        help="bytes of a row: elements, deepstack levels included, times bytes of the dtype (default: 8192)",
    )
    parser.add_argument(
        "--page-rows", type=_count, default=PAGE_ROWS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--policy", choices=list(POLICIES), default="lru", help="default: %(default)s")
    parser.add_argument(
        "--target",
        type=_share,
        default=0.9,
        metavar="SHARE",
        help="of what unlimited memory would save (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print what each size would have done, and which one reaches the target. Returns 1 without a trace."""
    try:
        made_up = args.trace in TRACES
        trace = make_trace(args.trace, LENGTH) if made_up else load_trace(Path(args.trace))
    except (OSError, ValueError) as error:
        print(f"vitcache memory: {error}", file=sys.stderr)
        return 1
    page_bytes = args.row_bytes * args.page_rows
    most = footprint(trace, args.page_rows)
    best = simulate(trace, args.policy, most, page_rows=args.page_rows)
    different = len({access.key for access in trace})
    print(f"{len(trace)} images, {different} of them different, {best.encode_ms / 1e3:.1f} s of encoding")
    print(f"{'memory':>10} {'hits':>7} {'time saved':>11} {'at most':>8}   policy {args.policy}")
    sizes = sorted({max(1, most >> halvings) for halvings in range(HALVINGS + 1)})
    for pages in sizes:
        outcome = simulate(trace, args.policy, pages, page_rows=args.page_rows)
        limit = bound(trace, pages, page_rows=args.page_rows)
        print(
            f"{_size(pages * page_bytes):>10} {outcome.hit_share:>7.1%} {outcome.saved_share:>11.1%} "
            f"{limit.saved_share:>8.1%}"
        )
    if best.saved_ms == 0:
        print("no image comes twice, or none takes time to encode: there is nothing to save")
        return 0
    pages = smallest(trace, args.policy, args.target * best.saved_ms, most, args.page_rows)
    print(
        f"device_bytes={pages * page_bytes} ({_size(pages * page_bytes)}) saves at least {args.target:g} of "
        "what unlimited memory would"
    )
    return 0


def smallest(trace: list[Access], policy: str, saved_ms: float, most: int, page_rows: int) -> int:
    """Return the fewest pages that save so much, by bisection; `most` do.

    That more memory saves more is taken for granted; where items differ in size it is not always quite so.
    """
    least = 1
    while least < most:
        middle = (least + most) // 2
        if simulate(trace, policy, middle, page_rows=page_rows).saved_ms >= saved_ms:
            most = middle
        else:
            least = middle + 1
    return most


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {number}, it must be at least 1")
    return number


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"it is {share:g}, it must be above 0 and at most 1")
    return share


def _size(num_bytes: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} GiB"
