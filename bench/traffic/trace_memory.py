"""``vitcache memory --trace``: the hits of each size of a cache, and the smallest size that is enough."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from vitcache.bench.traffic.memory_results import SizeResult, TraceMemory
from vitcache.bench.traffic.simulation import Outcome, bound, footprint, simulate
from vitcache.bench.traffic.size_text import size_text
from vitcache.bench.traffic.trace_file import load_trace
from vitcache.bench.traffic.traces import TRACES, Access, make_trace
from vitcache.cache.policies import POLICIES
from vitcache.terminal.progress import Progress
from vitcache.terminal.result_file import save_figure
from vitcache.terminal.table import Table

LENGTH = 20_000  # accesses of a generated trace
HALVINGS = 8
MAX_PAGES = 1 << 26  # of all images: a policy may take 16 bytes per page
MAX_COUNT = 1 << 40  # rows of a page, and bytes of a row
Number = TypeVar("Number", int, float)
DEFAULTS: dict[str, Any] = {"row_bytes": 8192, "policy": "lru", "target": 0.9}


def add_arguments(group: argparse._ActionsContainer) -> None:
    """Add the options that go with ``--trace``."""
    group.add_argument(
        "--row-bytes",
        type=_row_bytes,
        default=argparse.SUPPRESS,
        metavar="SIZE",
        help="bytes of a row, such as 8192 or 8KiB: elements, deepstack levels included, times bytes of the "
        f"dtype (default: {DEFAULTS['row_bytes']})",
    )
    group.add_argument(
        "--policy",
        choices=list(POLICIES),
        default=argparse.SUPPRESS,
        help=f"the order of eviction (default: {DEFAULTS['policy']})",
    )
    group.add_argument(
        "--target",
        type=_share,
        default=argparse.SUPPRESS,
        metavar="SHARE",
        help=f"share of the encode time that unlimited memory saves (default: {DEFAULTS['target']})",
    )


def run(args: argparse.Namespace) -> int:
    """Print the savings of each size and the smallest size that reaches the target; return the exit code."""
    try:
        with Progress("memory") as progress:
            progress.show(f"reads the trace {args.trace}")
            is_generated = args.trace in TRACES
            trace = make_trace(args.trace, LENGTH) if is_generated else load_trace(Path(args.trace))
            result = measure(trace, args, progress)
        if args.plot is not None:
            from vitcache.bench.traffic.memory_plot import draw_trace

            save_figure(draw_trace(result), args.plot)
    except (OSError, ValueError) as error:
        print(f"vitcache memory: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(asdict(result), indent=2))
    else:
        _report(result)
    return 0


def measure(trace: list[Access], args: argparse.Namespace, progress: Progress) -> TraceMemory:
    """Simulate a cache of each size on a trace, and find the smallest size that is enough."""
    page_bytes = args.row_bytes * args.page_rows
    max_pages = footprint(trace, args.page_rows)
    if max_pages > MAX_PAGES:
        raise ValueError(
            f"{args.trace}: its images take {max_pages} pages of {args.page_rows} rows together, expected at "
            f"most {MAX_PAGES}: raise --page-rows"
        )
    sizes = sorted({max(1, max_pages >> halvings) for halvings in range(HALVINGS + 1)})
    # The bisection below halves the sizes until one is left.
    run_ = _Simulations(trace, args.policy, args.page_rows, progress, len(sizes) + max_pages.bit_length())
    results = []
    for pages in sizes:
        outcome = run_.simulate(pages, page_bytes)
        limit = bound(trace, pages, page_rows=args.page_rows)
        results.append(
            SizeResult(pages * page_bytes, outcome.hit_share, outcome.saved_share, limit.saved_share)
        )
    best = outcome  # of the largest size, which holds all images
    device_bytes = None
    if best.saved_ms > 0:
        device_bytes = page_bytes * smallest(run_, args.target * best.saved_ms, max_pages, page_bytes)
    return TraceMemory(
        str(args.trace),
        len(trace),
        len({access.key for access in trace}),
        best.encode_ms,
        args.policy,
        args.page_rows,
        args.row_bytes,
        args.target,
        device_bytes,
        results,
    )


class _Simulations:
    """Simulations of one trace, which show their progress."""

    def __init__(
        self, trace: list[Access], policy: str, page_rows: int, progress: Progress, total: int
    ) -> None:
        self._trace, self._policy, self._page_rows = trace, policy, page_rows
        self._progress, self._done, self._total = progress, 0, total

    def simulate(self, pages: int, page_bytes: int) -> Outcome:
        self._progress.show(f"simulates {size_text(pages * page_bytes)}", self._done, self._total)
        self._done += 1
        return simulate(self._trace, self._policy, pages, page_rows=self._page_rows)


def smallest(simulations: _Simulations, saved_ms: float, max_pages: int, page_bytes: int) -> int:
    """Return the smallest number of pages that saves `saved_ms` milliseconds; `max_pages` must save that.

    Bisection: it assumes that more pages never save less. If items differ in size, that is not always true.
    """
    low, high = 1, max_pages
    while low < high:
        middle = (low + high) // 2
        if simulations.simulate(middle, page_bytes).saved_ms >= saved_ms:
            high = middle
        else:
            low = middle + 1
    return high


def _report(result: TraceMemory) -> None:
    print(
        f"{result.images} images, {result.different} of them different, {result.encode_ms / 1e3:.1f} s of "
        f"encoding; policy {result.policy}"
    )
    table = Table(["memory", "hits", "time saved", "at most"], right=range(4))
    for size in result.sizes:
        table.add(
            size_text(size.bytes), f"{size.hit_rate:.1%}", f"{size.saved:.1%}", f"{size.saved_at_most:.1%}"
        )
    table.print()
    if result.device_bytes is None:
        print("a cache saves nothing here: no image occurs twice, or every encode_ms is 0")
        return
    print(
        f"device_bytes={result.device_bytes} ({size_text(result.device_bytes)}) reaches {result.target:g} of "
        "the largest saving"
    )


def count(text: str) -> int:
    """Return a number from 1 to `MAX_COUNT`, as argparse converts an option."""
    number = _number(int, text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text[:50]}")
    if number > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"expected a number of at most {MAX_COUNT}, got {text[:50]}")
    return number


def _row_bytes(text: str) -> int:
    if re.fullmatch(r"[+-]?\d+", text):  # without a unit
        return count(text)
    from vitcache.arguments import to_bytes  # imports torch, which a trace needs for nothing else

    try:
        return to_bytes("row bytes", text, 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _share(text: str) -> float:
    share = _number(float, text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got {share:g}")
    return share


def _number(kind: type[Number], text: str) -> Number:
    """Convert an option; the message of a failure is for users, who do not know the names of functions."""
    try:
        return kind(text)
    except ValueError:
        words = {int: "a whole number", float: "a number"}[kind]
        raise argparse.ArgumentTypeError(f"expected {words}, got {text[:50]!r}") from None
