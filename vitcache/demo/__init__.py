"""The demo: a chat about photographs, through a stock model and through vitcache, compared and measured.

`run` checks the arguments before it imports transformers, so that a wrong argument is reported early. To
check ``--size 8b``, it imports torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from vitcache.extras import package_of
from vitcache.terminal.progress import Progress

_REQUIRED = ("torch", "transformers", "skimage", "sklearn", "PIL")
_DEFAULT = "qwen3_vl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to `parser`."""
    parser.add_argument(
        "--model",
        default=_DEFAULT,
        metavar="FAMILY",
        help="a family of models such as gemma3; an unknown name lists the families (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "8b"),
        help="tiny, or the shape of Qwen3-VL-8B, which needs a GPU (default: 8b with a GPU and qwen3_vl, "
        "else tiny)",
    )
    parser.add_argument(
        "--turns", type=int, default=6, metavar="N", help="turns, one new image each (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="runs of the chat; times are their medians (default: %(default)s)",
    )
    parser.add_argument(
        "--restart",
        type=Path,
        metavar="DIR",
        help="store the rows in this directory, and run the last turn again in a new process that reads them "
        "(default: no restart)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw encodes and times by turn in this PNG file"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; return the exit code.

    0: the logits were equal in every turn, and after a restart. 1: they differed somewhere. 2: the demo could
    not run, and a line on stderr says why.
    """
    try:
        _check(args)
        return _run(args)
    except BrokenPipeError:
        raise  # the command line ends quietly
    except (_Refusal, OSError) as error:
        print(f"vitcache demo: error: {error}", file=sys.stderr)
        return 2


class _Refusal(Exception):
    """The demo cannot run with these arguments or on this machine; the message is for the user."""


def _check(args: argparse.Namespace) -> None:
    """Raise `_Refusal` if an argument is wrong or a package is missing, before any work is done."""
    required = (*_REQUIRED, "matplotlib") if args.plot else _REQUIRED
    missing = [module for module in required if find_spec(module) is None]
    if missing:
        packages = ", ".join(map(package_of, missing))
        raise _Refusal(f"not installed: {packages}; run: pip install 'vitcache[demo]'")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path is not None:
            _check_writable(option, path)
    if args.json and args.plot and args.json.resolve() == args.plot.resolve():
        raise _Refusal(f"--json and --plot must be different files, both are {args.json}")
    if args.restart is not None and args.restart.exists() and not args.restart.is_dir():
        raise _Refusal(f"--restart must be a directory, {args.restart} is a file")
    from vitcache.demo.photos import MAX_PHOTOS

    if not 1 <= args.turns <= MAX_PHOTOS:
        raise _Refusal(f"--turns must be from 1 to {MAX_PHOTOS}, one photograph each, got {args.turns}")
    if args.repeats < 1:
        raise _Refusal(f"--repeats must be at least 1, got {args.repeats}")
    if args.model != _DEFAULT:
        from vitcache.demo.families import FAMILIES

        if args.model not in FAMILIES:
            raise _Refusal(f"--model must be one of {', '.join(FAMILIES)}, got {args.model}")
        if args.size == "8b":
            raise _Refusal(f"--size 8b is a size of {_DEFAULT}, --model is {args.model}")
    if args.size == "8b":
        import torch

        if not torch.cuda.is_available():
            raise _Refusal("--size 8b needs a CUDA GPU, found no GPU; use --size tiny")


def _check_writable(option: str, path: Path) -> None:
    if path.is_dir():
        raise _Refusal(f"{option} must be a file, {path} is a directory")
    if not path.parent.is_dir():
        raise _Refusal(f"{option} {path}: the directory {path.parent} does not exist")
    target = path.resolve()  # if `path` is a link to a missing file, test that file and keep the link
    is_new = not target.exists()
    if not is_new and not target.is_file():  # a device or a pipe: opening it may have an effect
        if not os.access(target, os.W_OK):
            raise _Refusal(f"{option} {path}: no permission to write it")
        return
    try:
        target.open("ab").close()
        if is_new:
            target.unlink()
    except OSError as error:
        raise _Refusal(f"{option} {path}: cannot be written: {error.strerror}") from None
    if not os.access(target.parent, os.W_OK | os.X_OK):  # the new file is written aside and renamed
        raise _Refusal(f"{option} {path}: no permission to create files in {target.parent}")


def _run(args: argparse.Namespace) -> int:
    from vitcache.demo.chat_plot import write_plot
    from vitcache.demo.report import print_report, write_json

    with Progress("demo") as progress:
        # In a log, where no line can be changed, each step is a line.
        step: Callable[[str], None] = progress.show if sys.stderr.isatty() else progress.print
        step("importing torch and transformers")
        import torch

        from vitcache.demo.restart import measure_restart
        from vitcache.demo.turns import converse, describe, find_family

        is_large = args.model == _DEFAULT and torch.cuda.is_available()
        size = args.size or ("8b" if is_large else "tiny")
        family = find_family(args.model, size)
        restart = None
        try:
            rows = converse(family, args.turns, args.repeats, step)
            if args.restart is not None:
                try:
                    of_chat = args.model, size, args.turns, args.repeats
                    restart = measure_restart(*of_chat, args.restart, step)
                except RuntimeError as error:
                    raise _Refusal(f"--restart {args.restart}: {error}") from None
        except torch.OutOfMemoryError as error:
            raise _Refusal(f"out of GPU memory, try --size tiny or fewer --turns: {error}") from None
        except ImportError as error:
            raise _Refusal(f"--model {args.model}: {' '.join(str(error).split())}") from None
    machine = describe(family)
    print_report(rows, machine, restart)
    try:
        if args.json:
            write_json(args.json, rows, machine, restart)
        if args.plot:
            write_plot(args.plot, rows, machine)
    except OSError as error:
        raise _Refusal(f"the results could not be written: {error}") from None
    is_equal = all(row.equal for row in rows) and (restart is None or restart.equal)
    return 0 if is_equal else 1
