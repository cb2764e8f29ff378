"""``vitcache memory``: the memory that a trace of requests needs, or the images of models that it holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vitcache.bench.traffic import model_memory, trace_memory
from vitcache.bench.traffic.known_models import KNOWN_MODELS
from vitcache.bench.traffic.simulation import PAGE_ROWS
from vitcache.bench.traffic.traces import TRACES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.set_defaults(refuse=parser.error)
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--model",
        nargs="+",
        action="extend",
        metavar="MODEL",
        help="print how many images of these models a cache holds: a config.json, a folder with one, a "
        "checkpoint in the local Hugging Face cache, a model type of transformers such as qwen3_vl, or one "
        f"of {', '.join(KNOWN_MODELS)}, also by the checkpoint's full name; nothing is downloaded (default: "
        f"these {len(KNOWN_MODELS)})",
    )
    sources.add_argument(
        "--trace",
        metavar="FILE",
        help='a file of lines {"key": "cat.jpg", "tokens": 405, "encode_ms": 27.1}; encode_ms is optional; '
        f"or a generated trace: {', '.join(TRACES)}",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON (default: a table)")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw a PNG or SVG file: hits over sizes of a trace, images over sizes of models",
    )
    parser.add_argument(
        "--page-rows",
        type=trace_memory.count,
        default=PAGE_ROWS,
        metavar="N",
        help="rows of a page, the unit of storage (default: %(default)s)",
    )
    model_memory.add_arguments(parser.add_argument_group("without --trace"))
    trace_memory.add_arguments(parser.add_argument_group("with --trace"))


def run(args: argparse.Namespace) -> int:
    """Run the command; return 0, or 1 if the trace or a model cannot be used.

    Exits with 2 if an option of traces was given without a trace, or the other way round, or if the file of
    ``--plot`` cannot be written.
    """
    if args.plot is not None:
        _check_plot(args)
    if args.trace is not None:
        return trace_memory.run(
            _with_defaults(args, "with argument --trace", trace_memory.DEFAULTS, model_memory.DEFAULTS)
        )
    source = "without argument --trace" if args.model is None else "with argument --model"
    return model_memory.run(_with_defaults(args, source, model_memory.DEFAULTS, trace_memory.DEFAULTS))


def _check_plot(args: argparse.Namespace) -> None:
    """Refuse a file that cannot be drawn, before the numbers are computed."""
    import matplotlib  # noqa: F401  # if it is missing, the command line names it and how to install it

    if args.plot.suffix not in (".png", ".svg"):
        args.refuse(f"argument --plot: expected a file name that ends with .png or .svg, got {args.plot}")
    if not args.plot.parent.is_dir():
        args.refuse(f"argument --plot: the folder {args.plot.parent} of {args.plot.name} does not exist")


def _with_defaults(
    args: argparse.Namespace, source: str, own: dict[str, Any], foreign: dict[str, Any]
) -> argparse.Namespace:
    for name in foreign:
        if name in args:
            args.refuse(f"argument --{name.replace('_', '-')}: not allowed {source}")
    return argparse.Namespace(**own | vars(args))
