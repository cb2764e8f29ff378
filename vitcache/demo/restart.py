"""The last turn of the chat in a new process, with rows that an earlier process stored, and without.

`measure_restart` stores rows, and runs this module in a new process: ``python -m vitcache.demo.restart``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vitcache.demo.conversation import Picture, Prompt, build_prompt
from vitcache.demo.family import Family
from vitcache.demo.logits import compare_logits
from vitcache.demo.model import share_weights
from vitcache.demo.stock_side import AttachedAnswer, StockSide
from vitcache.demo.turns import build, find_family, one_thread, process_photos
from vitcache.demo.vitcache_side import AttachedSide
from vitcache.tiers.disk_tier import DiskTier

_DISK_BYTES = "1GiB"
_FLUSH_S = 60.0


@dataclass(frozen=True)
class Restart:
    """The results of the last turn in a new process.

    Attributes
    ----------
    images
        Images of the prompt.
    encoded, encoded_disk
        Images that the new process encoded, without the disk and with it.
    ttft_ms, ttft_ms_disk
        Medians of the time to the first token, in milliseconds.
    equal
        Whether all logits with the disk equal those of the stock model bit for bit.
    """

    images: int
    encoded: int
    encoded_disk: int
    ttft_ms: float
    ttft_ms_disk: float
    equal: bool


def measure_restart(
    name: str, size: str, turns: int, repeats: int, folder: Path, step: Callable[[str], None]
) -> Restart:
    """Store the rows of a chat in `folder`, and run its last turn in a new process.

    Raises
    ------
    RuntimeError
        If the rows were not stored, or the new process fails. The message has its last line.
    """
    step(f"storing the rows of the chat in {folder}")
    family = find_family(name, size)
    with _as_the_chat():
        model, prompt, pictures = _prepare(family, turns)
        side = AttachedSide(model, pictures, [DiskTier(folder, _DISK_BYTES)])
        for _ in range(4):  # an entry is stored at its second hit, after a first output that shows the form
            side.answer(prompt)
        cache = side.attachment.cache
        is_stored = cache.flush(_FLUSH_S)
        cache.close()
    if not is_stored:
        raise RuntimeError(f"the rows were not stored in {folder} within {_FLUSH_S:g} s")
    step("the last turn in a new process, without the disk and with it")
    arguments = [name, size, str(turns), str(repeats), str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "vitcache.demo.restart", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise RuntimeError(f"the new process failed: {last}")
    return Restart(**json.loads(done.stdout))


def run_last_turn(family: Family, turns: int, repeats: int, folder: Path) -> Restart:
    """Run the last turn `repeats` times with a new cache each, without the disk and with it."""
    with _as_the_chat():
        model, prompt, pictures = _prepare(family, turns)
        stock = StockSide(model)
        reference = model, stock.answer_one_at_a_time(prompt)
        stock.answer(prompt)  # no first call is measured
        without, with_disk = [], []
        equal = True
        for _ in range(repeats):
            without.append(_answer(AttachedSide(share_weights(model), pictures), prompt))
            side = AttachedSide(share_weights(model), pictures, [DiskTier(folder, _DISK_BYTES)])
            with_disk.append(_answer(side, prompt))
            equal &= compare_logits(reference, (side.model, with_disk[-1].hidden))[0]
    return Restart(
        len(prompt.pictures),
        _most_encoded(without),
        _most_encoded(with_disk),
        median(answer.ttft_ms for answer in without),
        median(answer.ttft_ms for answer in with_disk),
        equal,
    )


def _prepare(family: Family, turns: int) -> tuple[Any, Prompt, list[Picture]]:
    """Return the model, the prompt of the last turn, and its pictures."""
    model = build(family, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    _, pictures = process_photos(family, model, turns)
    return model, build_prompt(pictures, model.config), pictures


def _answer(side: AttachedSide, prompt: Prompt) -> AttachedAnswer:
    answer = side.answer(prompt)
    side.attachment.cache.close()
    return answer


def _most_encoded(answers: Sequence[AttachedAnswer]) -> int:
    return max(answer.encoded for answer in answers)


@contextmanager
def _as_the_chat() -> Iterator[None]:
    """No gradients, and one thread on a CPU, as in the chat."""
    with torch.no_grad(), nullcontext() if torch.cuda.is_available() else one_thread():
        yield


if __name__ == "__main__":
    name, size, turns, repeats, folder = sys.argv[1:]
    result = run_last_turn(find_family(name, size), int(turns), int(repeats), Path(folder))
    print(json.dumps(asdict(result)))
