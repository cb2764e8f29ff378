"""``python -m vitcache memory``: the memory that a trace needs, or the images of a model that fit in it."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitcache.bench.traffic import model_memory
from vitcache.bench.traffic.simulation import PAGE_ROWS, bound, footprint, simulate
from vitcache.bench.traffic.size_text import size_text
from vitcache.bench.traffic.trace_file import load_trace
from vitcache.bench.traffic.traces import TRACES, Access, make_trace
from vitcache.cache.policies import POLICIES

LENGTH = 20_000  # accesses of a generated trace
HALVINGS = 8
_DEFAULTS: dict[str, Any] = {"row_bytes": 8192, "policy": "lru", "target": 0.9}  # of the options with --trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.set_defaults(refuse=parser.error)
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument(
        "--trace",
        metavar="FILE",
        help='a file of lines {"key": "cat.jpg", "tokens": 405, "encode_ms": 27.1}; encode_ms is optional; '
        f"or a generated trace: {', '.join(TRACES)}",
    )
    model_memory.add_model_option(sources)
    parser.add_argument(
        "--page-rows", type=_count, default=PAGE_ROWS, metavar="N", help="default: %(default)s"
    )
    model_memory.add_arguments(parser.add_argument_group("with --model"))
    _add_trace_arguments(parser.add_argument_group("with --trace"))


def _add_trace_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--row-bytes",
        type=_row_bytes,
        default=argparse.SUPPRESS,
        metavar="SIZE",
        help="bytes of a row, such as 8192 or 8KiB: elements, deepstack levels included, times bytes of the "
        f"dtype (default: {_DEFAULTS['row_bytes']})",
    )
    group.add_argument(
        "--policy",
        choices=list(POLICIES),
        default=argparse.SUPPRESS,
        help=f"default: {_DEFAULTS['policy']}",
    )
    group.add_argument(
        "--target",
        type=_share,
        default=argparse.SUPPRESS,
        metavar="SHARE",
        help=f"share of the encode time that unlimited memory saves (default: {_DEFAULTS['target']})",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; return 0, or 1 if the trace or the model cannot be used.

    Exits with 2 if an option of traces was given with a model, or the other way round.
    """
    if args.model is not None:
        return model_memory.run(_with_defaults(args, "--model", model_memory.DEFAULTS, _DEFAULTS))
    return _run_trace(_with_defaults(args, "--trace", _DEFAULTS, model_memory.DEFAULTS))


def _with_defaults(
    args: argparse.Namespace, source: str, own: dict[str, Any], foreign: dict[str, Any]
) -> argparse.Namespace:
    for name in foreign:
        if name in args:
            args.refuse(f"argument --{name.replace('_', '-')}: not allowed with argument {source}")
    return argparse.Namespace(**own | vars(args))


def _run_trace(args: argparse.Namespace) -> int:
    """Print the savings of each size and the smallest size that reaches the target."""
    try:
        is_generated = args.trace in TRACES
        trace = make_trace(args.trace, LENGTH) if is_generated else load_trace(Path(args.trace))
    except (OSError, ValueError) as error:
        print(f"vitcache memory: {error}", file=sys.stderr)
        return 1
    page_bytes = args.row_bytes * args.page_rows
    max_pages = footprint(trace, args.page_rows)
    best = simulate(trace, args.policy, max_pages, page_rows=args.page_rows)
    different = len({access.key for access in trace})
    print(f"{len(trace)} images, {different} of them different, {best.encode_ms / 1e3:.1f} s of encoding")
    print(f"{'memory':>10} {'hits':>7} {'time saved':>11} {'at most':>8}   policy {args.policy}")
    sizes = sorted({max(1, max_pages >> halvings) for halvings in range(HALVINGS + 1)})
    for pages in sizes:
        outcome = simulate(trace, args.policy, pages, page_rows=args.page_rows)
        limit = bound(trace, pages, page_rows=args.page_rows)
        print(
            f"{size_text(pages * page_bytes):>10} {outcome.hit_share:>7.1%} {outcome.saved_share:>11.1%} "
            f"{limit.saved_share:>8.1%}"
        )
    if best.saved_ms == 0:
        print("a cache saves nothing here: no image occurs twice, or every encode_ms is 0")
        return 0
    pages = smallest(trace, args.policy, args.target * best.saved_ms, max_pages, args.page_rows)
    print(
        f"device_bytes={pages * page_bytes} ({size_text(pages * page_bytes)}) saves at least "
        f"{args.target:g} of the encode time that unlimited memory saves"
    )
    return 0


def smallest(trace: list[Access], policy: str, saved_ms: float, max_pages: int, page_rows: int) -> int:
    """Return the smallest number of pages that saves `saved_ms` milliseconds; `max_pages` must save that.

    Bisection: it assumes that more pages never save less. If items differ in size, that is not always true.
    """
    low, high = 1, max_pages
    while low < high:
        middle = (low + high) // 2
        if simulate(trace, policy, middle, page_rows=page_rows).saved_ms >= saved_ms:
            high = middle
        else:
            low = middle + 1
    return high


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {number}")
    return number


def _row_bytes(text: str) -> int:
    with suppress(ValueError):  # not an int: a number and a unit
        return _count(text)
    from vitcache.arguments import to_bytes  # imports torch, which the command needs for nothing else

    try:
        return to_bytes("row bytes", text, 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got {share:g}")
    return share
