"""A chat of the bench `tiers` whose process is restarted before its last turn, with and without a disk.

A restart is a new model, a new cache and a new attachment: nothing of before is in memory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vitcache import WriteBack
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer

if TYPE_CHECKING:
    from vitcache.bench.claims.restarted_chat import Turn

KEPT, WITHOUT = "without a restart", "restart, no disk"
SECOND_HIT, EACH = "restart, disk", "restart, disk with each image"
RULES = {SECOND_HIT: WriteBack(), EACH: WriteBack(hits=0)}


@dataclass(frozen=True)
class RestartCase:
    """A chat of `turns` turns, each of which adds an image."""

    turns: int

    @property
    def name(self) -> str:
        """The turn after the restart."""
        return f"turn {self.turns} of a chat"


def run_restart(case: RestartCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    from vitcache.bench.claims.restarted_chat import DEVICE, FAMILY, talk
    from vitcache.demo.conversation import build_prompt
    from vitcache.demo.logits import compare_logits
    from vitcache.demo.stock_side import StockSide
    from vitcache.demo.turns import build, one_thread, process_photos

    with torch.no_grad(), one_thread(), tempfile.TemporaryDirectory() as folder:
        yield "model and photographs"
        stock = build(FAMILY, DEVICE)
        _, pictures = process_photos(FAMILY, stock, case.turns)
        prompts = [build_prompt(pictures[:turn], stock.config) for turn in range(1, case.turns + 1)]
        reference = stock, StockSide(stock).answer_one_at_a_time(prompts[-1])
        kept: dict[str, Path] = {}
        for name, rule in RULES.items():
            yield f"turns before the restart: {name}"
            kept[name] = Path(folder, str(len(kept)))
            talk(pictures, prompts[:-1], kept[name], rule).end()
        yield "the last turn, in turns"
        turns: dict[str, list[Turn]] = {}
        repeats = max(1, timer.repeats // 5)
        for done in range(repeats + 1):
            timer.on_round(done, repeats + 1)
            for name in (KEPT, WITHOUT, *RULES):
                used = None
                if name in kept:  # a copy: the turn stores further images
                    used = Path(folder, "used")
                    shutil.copytree(kept[name], used)
                rule = RULES.get(name, WriteBack())
                chat = talk(pictures, prompts[: -1 if name == KEPT else 0], used, rule)
                turn = chat.answer(prompts[-1])
                is_equal, _ = compare_logits(reference, (chat.model, turn.hidden))
                chat.end()
                if not is_equal:
                    raise RuntimeError(f"{name}: the logits are not those of stock: it gets no number")
                turns.setdefault(name, []).append(turn)
                if used is not None:
                    shutil.rmtree(used)
        for metric, unit, values in (
            ("turn_ms", "ms", {name: [turn.ms for turn in found[1:]] for name, found in turns.items()}),
            ("encodes", "images", {n: [float(turn.encoded) for turn in f[1:]] for n, f in turns.items()}),
        ):
            samples = {name: Sample.of(found) for name, found in values.items()}
            for name, sample in samples.items():
                recorder.add(
                    *(case.name, name, metric, unit, sample), against=(WITHOUT, samples[WITHOUT].value)
                )
