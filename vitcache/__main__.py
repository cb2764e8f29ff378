"""The command line: `vitcache info | demo | memory | bench`, also as `python -m vitcache`."""

from __future__ import annotations

import argparse
import errno
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module

from vitcache._version import __version__
from vitcache.extras import need_of
from vitcache.terminal.closed_pipe import (
    CLOSED_PIPE,
    drop_closed_streams,
    drop_full_streams,
    flush_streams,
    open_missing_streams,
)
from vitcache.terminal.commands import COMMANDS, HelpFormatter, examples_text, overview
from vitcache.terminal.progress import Progress

DISK_FULL = errno.ENOSPC, errno.EDQUOT
# Limits of the process, as `ulimit -f` and `ulimit -n` set them, and the system's number of open files.
LIMITS = errno.EFBIG, errno.EMFILE, errno.ENFILE
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
ABOUT = (
    "vitcache encodes every image once: a cache of vision embeddings, and the kernels that place its rows."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code of the process.

    130: interrupted by Ctrl-C. 141: the reader of stdout or stderr closed the pipe. 1: a package is missing,
    the disk is full or a limit of the process is reached, and a line on stderr says so. All other codes are
    those of the command; its help lists them. A wrong option exits with 2.
    """
    open_missing_streams()
    try:
        try:
            code = run_command(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            print("vitcache: interrupted", file=sys.stderr)
            code = INTERRUPTED
        except SystemExit:
            flush_streams()
            raise
        flush_streams()
        return code
    except BrokenPipeError:
        if not drop_closed_streams():
            raise
        return CLOSED_PIPE
    except OSError as error:
        if error.errno not in DISK_FULL + LIMITS:
            raise
        drop_full_streams()
        print(f"vitcache: {error.strerror}", file=sys.stderr)
        return 1
    except SystemExit as exit_:
        # rich turns a closed pipe into exit code 1, which means something else for some commands.
        if not isinstance(exit_.__context__, BrokenPipeError):
            raise
        return CLOSED_PIPE
    except Exception:
        drop_closed_streams()  # the error is shown, and no second one about the pipe
        raise


def run_command(arguments: Sequence[str]) -> int:
    """Parse `arguments` and run their command; return its exit code. Without arguments, print the help."""
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    parser = make_parser()
    commands = parser.add_subparsers(
        prog="vitcache", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    try:
        for name, command in COMMANDS.items():
            subparser = commands.add_parser(
                name,
                description=_wrapped(command.about),
                epilog=examples_text(command),
                formatter_class=HelpFormatter,
            )
            if name == chosen:
                with Progress(name) as progress:
                    progress.show("starts")  # some commands import torch, which takes seconds
                    implementation = import_module(command.module)
                implementation.add_arguments(subparser)
                subparser.set_defaults(run=implementation.run)
        if not arguments:
            parser.print_help()
            return 0
        args = parser.parse_args(arguments)
        return int(args.run(args))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "vitcache":
            raise
        print(f"vitcache {chosen} {need_of(error.name)}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options before the command."""
    parser = argparse.ArgumentParser(
        prog="vitcache",
        usage="vitcache [-h] [--version] COMMAND ...",
        description=_wrapped(ABOUT),
        epilog=overview(),
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vitcache {__version__}")
    return parser


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 78)


if __name__ == "__main__":
    sys.exit(main())
