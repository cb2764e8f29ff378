"""The command line: `python -m vitcache demo | bench | memory | info`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Command: (module, summary). A module defines `add_arguments(parser)` and `run(args)`, which returns the exit
# code. The module is imported only if its command is chosen.
COMMANDS = {
    "demo": ("vitcache.demo", "run a chat about photographs through a stock model and through vitcache"),
    "bench": ("vitcache.bench.run", "measure the claims of vitcache"),
    "memory": (
        "vitcache.bench.traffic.memory",
        "compute how much memory a trace of image requests or the images of a model need",
    ),
    "info": ("vitcache.info", "list the parts that this build and this machine have or lack"),
}

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code of the process."""
    try:
        return run_command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("vitcache: interrupted", file=sys.stderr)
        return INTERRUPTED


def run_command(arguments: Sequence[str]) -> int:
    """Parse `arguments` and run their command; return its exit code."""
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    parser = argparse.ArgumentParser(prog="python -m vitcache")
    commands = parser.add_subparsers(metavar="demo|bench|memory|info", required=True)
    try:
        for name, (module, summary) in COMMANDS.items():
            command = commands.add_parser(name, help=summary, description=summary)
            if name == chosen:
                implementation = import_module(module)
                implementation.add_arguments(command)
                command.set_defaults(run=implementation.run)
        args = parser.parse_args(arguments)
        return int(args.run(args))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "vitcache":
            raise
        print(f"vitcache {chosen} needs {error.name}: pip install 'vitcache[demo]'", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
