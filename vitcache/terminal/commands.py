"""The commands of `vitcache`: the module of each, the question that it answers, its examples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """One command.

    `module` defines `add_arguments(parser)` and `run(args)`, which returns the exit code. The module is
    imported only if its command is chosen. `answers` is one line for the list of the commands. `about` is the
    text above the options. `examples` are pairs of a call and its effect; the list shows the first call.
    """

    module: str
    answers: str
    about: str
    examples: Sequence[tuple[str, str]]


COMMANDS = {
    "info": Command(
        "vitcache.info",
        "Which parts work on this machine? Are the versions supported?",
        "List the parts that this build and this machine have or lack, and whether the versions of torch, "
        "Triton, transformers and vLLM are supported. The exit code is 0 also if parts are missing: a script "
        "reads the JSON.",
        [
            ("vitcache info", "a table of the parts"),
            ("vitcache info --json", "the same facts for a bug report or a script"),
        ],
    ),
    "demo": Command(
        "vitcache.demo",
        "How much time does it save? Are the outputs equal?",
        "Run a chat about photographs through a stock model and through vitcache, side by side, and compare "
        "the logits of every turn. Needs the extra: pip install 'vitcache[demo]'. The exit code is 0 if all "
        "logits were equal, 1 if they differed, 2 if the demo could not run.",
        [
            ("vitcache demo --turns 3", "three turns, a tiny model without a GPU"),
            ("vitcache demo --plot chat.png", "also draw the encodes and times of each turn"),
            ("vitcache demo --model gemma3 --json chat.json", "another family; the numbers as JSON"),
        ],
    ),
    "memory": Command(
        "vitcache.bench.traffic.memory",
        "How much memory do my images need?",
        "Print how many images of a model each size of a cache holds, or simulate a cache on a trace of "
        "image requests. Without --model and --trace: a table of well-known models.",
        [
            ("vitcache memory", "rows and megabytes per image of well-known models"),
            ("vitcache memory --model Qwen3-VL-8B --device-bytes 4GiB", "the images that 4 GiB hold"),
            ("vitcache memory --model ./checkpoint --images 1024x768", "your checkpoint, your images"),
            ("vitcache memory --trace requests.jsonl --row-bytes 8KiB", "hits by size, for your traffic"),
            ("vitcache memory --trace mixed --plot hits.png", "generated traffic; draw the hit rate"),
        ],
    ),
    "bench": Command(
        "vitcache.bench.run",
        "Are the claims true on this machine?",
        "Measure the claims of vitcache. Each result is written to a JSON file at once. A result that misses "
        "its target is marked. The exit code is 1 if a case raised, else 0.",
        [
            ("vitcache bench --bench cpu --cases smoke", "one bench in small sizes"),
            ("vitcache bench --bench placement --out results", "full sizes on a GPU; where the files go"),
            ("vitcache bench --list", "the benches as JSON, and whether a GPU runs them"),
        ],
    ),
}

_HELP_COLUMN = 22


def overview() -> str:
    """Return the list of the commands: the question that each answers, and one example line each."""
    lines = ["commands:"]
    for name, command in COMMANDS.items():
        lines += [f"  {name:<8}{command.answers}", f"          $ {command.examples[0][0]}"]
    lines += ["", "`vitcache COMMAND --help` has the options, their defaults and more examples."]
    return "\n".join(lines)


def examples_text(command: Command) -> str:
    """Return the examples below the options of a command: a call on one line, and its effect below it."""
    lines = ["examples:"]
    for call, effect in command.examples:
        lines += [f"  $ {call}", f"      {effect}"]
    return "\n".join(lines)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of at most 80 columns, also in a wider terminal, with examples as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_HELP_COLUMN)
        self._width = min(self._width, 78)
