"""The words of the demo: the table, the results as sentences, and the JSON file.

The JSON file is one object. These keys are stable: `device` and `rows`, and in each row `turn`, `images`,
`encoded_stock`, `encoded`, `hits`, `vision_ms_stock`, `vision_ms`, `ttft_ms_stock`, `ttft_ms` and `equal`.
The file has more keys, and later versions may add some: a program that reads it must ignore unknown keys.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcache.demo.chat_table import text
from vitcache.demo.row import Row

if TYPE_CHECKING:
    from vitcache.demo.restart import Restart
from vitcache.terminal.result_file import replace_file

_WIDTH = 79
_BEFORE = """\
A chat about photographs. Each turn adds one image and a question, and its
prompt repeats all earlier images. One model answers every turn in three ways:
  stock     transformers alone: it encodes all images of the prompt in each turn
  attach    after `vitcache.attach(model)`: it encodes an image once
  pipeline  with `vitcache.VisionPipeline`, which is made for engines
"""
_NEXT = """\
Next steps
  in your own code   import vitcache; vitcache.attach(model)
  in a vLLM server   docs/vllm.md in the sources of vitcache
  memory it takes    vitcache memory --help
  a picture          vitcache demo --plot chat.png
"""


def print_report(rows: Sequence[Row], machine: Mapping[str, str], restart: Restart | None = None) -> None:
    """Print the sides, the table, the results and the next steps to stdout."""
    runs = len(rows[0].samples["ttft_ms_stock"])
    title = f"{machine['model']} with random weights, {machine['dtype']}, on {machine['device']}"
    median = f"median of {runs} runs" if runs > 1 else "one run"
    times = f"Times: {median} of the chat, from ids and pixels in host memory."
    print("\n".join([_BEFORE, title, "", *text([asdict(row) for row in rows]), times]))
    print("\nResults")
    for fact in facts(rows) + ([] if restart is None else [restart_fact(restart)]):
        print(textwrap.fill(fact, _WIDTH, initial_indent="- ", subsequent_indent="  "))
    print(f"\n{_NEXT}", end="")


def facts(rows: Sequence[Row]) -> list[str]:
    """Return the encodes, the time, the logits and the placement of a conversation, each as sentences."""
    last, turns = rows[-1], "1 turn" if len(rows) == 1 else f"{len(rows)} turns"
    stock, attached = sum(row.encoded_stock for row in rows), sum(row.encoded_attach for row in rows)
    return [
        f"In {turns} the stock model encoded {_images(stock)}, attach {attached}. In turn {last.turn} "
        f"attach found {_images(last.hits_attach)} in its cache, and its encoder read "
        f"{last.pixel_bytes_attach / 1e6:.1f} MB of pixels instead of {last.pixel_bytes_stock / 1e6:.1f} MB.",
        f"The first token of turn {last.turn} took {last.ttft_ms_attach:.0f} ms with attach, "
        f"{last.ttft_ms:.0f} ms with the pipeline, {last.ttft_ms_stock:.0f} ms with stock.",
        _logits(rows),
        _placed(rows),
    ]


def restart_fact(restart: Restart) -> str:
    """Return the encodes, the time and the logits of the last turn in a new process, as sentences."""
    is_equal = "equal, bit for bit" if restart.equal else "DIFFERENT"
    return (
        f"After a restart, a new process encoded {_images(restart.encoded)} for the last turn without the "
        f"disk, {restart.encoded_disk} with it: attach encodes the first image of each process. The first "
        f"token took {restart.ttft_ms:.0f} ms without the disk, {restart.ttft_ms_disk:.0f} ms with it. "
        f"Logits were {is_equal}."
    )


def _logits(rows: Sequence[Row]) -> str:
    """Return whether the logits were equal in every turn, and the spread of the stock model's own logits."""
    unequal = [str(row.turn) for row in rows if not row.equal]
    spread = max(row.spread_stock for row in rows)
    words = (
        f"Logits differed in turn {', '.join(unequal)}."
        if unequal
        else "Logits were equal in every turn and at every position, bit for bit."
    )
    if spread:
        words += (
            f" The reference is the stock model with its images encoded one at a time; encoding them in one "
            f"batch changes a logit of the stock model by up to {spread:.1g}."
        )
    return words


def _placed(rows: Sequence[Row]) -> str:
    """Return how many forward calls of the attached model were placed, and each reason against it."""
    placed = sum(row.placed_calls_attach for row in rows)
    unplaced: Counter[str] = Counter()
    for row in rows:
        unplaced.update(row.unplaced_calls_attach)
    words = (
        f"With attach, {placed} of {placed + unplaced.total()} forward calls were placed: vitcache wrote the "
        "rows of the images to their tokens in `inputs_embeds`, in place of the merge of the model."
    )
    for reason, number in unplaced.items():
        words += f" In {number} the stock merge got a copy of the rows, because {reason}."
    return words


def write_json(
    path: Path, rows: Sequence[Row], machine: Mapping[str, str], restart: Restart | None = None
) -> None:
    """Write the rows, the restart if there was one, and the description of the machine to a JSON file."""
    report: dict[str, Any] = {**machine, "rows": [asdict(row) for row in rows]}
    if restart is not None:
        report["restart"] = asdict(restart)
    replace_file(path, json.dumps(report, indent=2) + "\n")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
