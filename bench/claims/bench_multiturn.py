"""Claim: in a chat with one new image per turn, the vision tower runs for one image, whatever came before.

Qwen3-VL with random weights, one driver (`ChunkedPrefill`) for all contenders, which differ in what is behind
its `pipeline`. In the cases that end with ``-kv`` the KV cache keeps what earlier turns left there; in the
others it was lost between the turns, as happens on a busy server, and the whole history is prefilled again.
Two more claims about one step are in `step`: eight cold images cost what their encoding costs, and a cache
that hits nothing costs nothing; and one about a step that hits everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitcache import Chunk, Items
from vitcache.bench.chats.chat import Chat, Tower, load_model
from vitcache.bench.chats.sides import (
    COMPUTED,
    ENGINES,
    ON_HOST,
    SIDES,
    VITCACHE,
    Side,
    check_built,
    open_ring,
    open_side,
)
from vitcache.bench.claims.step import HitsCase, StepCase, run_hits, run_step
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "multiturn"
# Target of the design: one image per turn, in any turn.
IMAGES_PER_TURN = 1


@dataclass(frozen=True)
class ChatCase:
    """A chat with an image of ``grid`` patches in each of `turns` turns, held so often by each contender."""

    name: str
    grid: tuple[int, int, int]
    keeps_kv: bool
    passes: int
    size: str = "8b"
    turns: int = 8
    chunk_tokens: int = 8192


@dataclass(frozen=True)
class Turn:
    """Time to the first token, milliseconds in the vision tower per chunk, and images encoded."""

    ttft_ms: float
    chunk_vit_ms: list[float]
    images: int

    @property
    def vit_ms(self) -> float:
        """Milliseconds in the vision tower."""
        return sum(self.chunk_vit_ms)


GRIDS = {"1280x720": (1, 44, 80), "1920x1080": (1, 68, 120), "2560x1440": (1, 90, 160)}
TINY = {"size": "tiny", "turns": 3, "chunk_tokens": 24}
CASES: dict[str, list[Any]] = {
    "full": [
        ChatCase("1280x720", GRIDS["1280x720"], keeps_kv=False, passes=2),
        ChatCase("1920x1080", GRIDS["1920x1080"], keeps_kv=False, passes=1),
        ChatCase("2560x1440", GRIDS["2560x1440"], keeps_kv=False, passes=1),
        ChatCase("1280x720-kv", GRIDS["1280x720"], keeps_kv=True, passes=3),
        ChatCase("1920x1080-kv", GRIDS["1920x1080"], keeps_kv=True, passes=2),
        ChatCase("2560x1440-kv", GRIDS["2560x1440"], keeps_kv=True, passes=1),
        StepCase("8x1920x1080", GRIDS["1920x1080"], images=8),
        HitsCase("32x1280x720", images=32, rows=880),
        HitsCase("32x1280x720-deepstack3", images=32, rows=880, levels=3),
    ],
    "smoke": [
        ChatCase("tiny", (1, 8, 8), keeps_kv=False, passes=2, **TINY),
        ChatCase("tiny-kv", (1, 8, 8), keeps_kv=True, passes=1, **TINY),
        StepCase("3xtiny", (1, 8, 8), images=3, size="tiny", max_rows=32),
        HitsCase("3x7-deepstack2", images=3, rows=7, levels=2, hidden=64, vocabulary=97),
    ],
}


def run_case(case: Any, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields what it does next."""
    run = {ChatCase: run_chat, StepCase: run_step, HitsCase: run_hits}[type(case)]
    yield from run(case, recorder, timer)


def run_chat(case: ChatCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Hold the chat with every contender, in turns."""
    yield "building the model"
    model = load_model(case.size, timer.device)
    chat, tower = Chat(model, case.grid, case.turns), Tower(model)
    with ExitStack() as stack:
        ring = open_ring(timer.device, stack)

        def fresh(name: str, each: ExitStack) -> Side:
            return open_side(name, chat, tower, ring, each, images=case.turns)

        yield "checking"
        expected = None
        for name in SIDES:
            with ExitStack() as each:
                side = fresh(name, each)
                if name not in ENGINES:
                    # What is compared is hits, one from each turn.
                    for turn in range(case.turns):
                        build(side, chat, turn * chat.tokens_per_turn, chat.tokens_per_turn)
                        side.rest()
                chunks = range(0, len(chat.host_ids), case.chunk_tokens)
                built = torch.cat([build(side, chat, start, case.chunk_tokens) for start in chunks], dim=1)
            expected = built if expected is None else expected
            check_built(name, built, expected)
        del built, expected
        # Every turn, as the stock tower gets as many images: a batch of a new size costs more the first time.
        for name in ("no cache", VITCACHE):
            yield f"warming up, {name}"
            with ExitStack() as each:
                hold(case, chat, tower, fresh(name, each), range(1, case.turns + 1))
        held: dict[str, list[list[Turn]]] = {name: [] for name in SIDES}
        for number in range(1, case.passes + 1):
            for name in SIDES:
                yield f"{name}, pass {number} of {case.passes}"
                with ExitStack() as each:
                    held[name].append(hold(case, chat, tower, fresh(name, each), range(1, case.turns + 1)))
    add_turns(case, recorder, held)


def build(side: Side, chat: Chat, start: int, tokens: int) -> Tensor:
    """`inputs_embeds` and deepstack levels of up to so many tokens of the whole chat, one upon the other."""
    ids = chat.host_ids[start : start + tokens].to(chat.weight.device)
    deepstack, chunk = chat.deepstack(len(ids)), Chunk(side.items, start, len(ids))
    result = side.pipeline.embed([chunk], ids, chat.weight, deepstack=deepstack)
    if result.errors:
        raise RuntimeError(f"an image was not encoded: {result.errors[0]}")
    return torch.cat([result.inputs_embeds[None], deepstack])


@torch.no_grad()
def hold(case: ChatCase, chat: Chat, tower: Tower, side: Side, turns: Sequence[int]) -> list[Turn]:
    """Hold some turns of a chat with one contender."""
    from vitcache.adapters.transformers import ChunkedPrefill
    from vitcache.demo.stopwatch import Stopwatch

    driver = ChunkedPrefill(chat.model, side.pipeline, case.chunk_tokens)
    held = []
    for turn in turns:
        if not case.keeps_kv:
            driver.reset()
        ids, items = chat.prompt(turn), Items(side.items[:turn])
        tower.take()
        ends = [0]
        with Stopwatch(chat.weight.device) as first_token:
            for hidden in driver.chunks(ids, items):
                ends.append(len(tower.calls))
                last = hidden[:, -1]
            int(chat.model.lm_head(last).argmax())
        calls, images = tower.take()
        chunks = [sum(call.ms() for call in calls[begin:end]) for begin, end in pairwise(ends)]
        held.append(Turn(first_token.ms, chunks, images))
        side.rest()
    return held


def add_turns(case: ChatCase, recorder: Recorder, held: dict[str, list[list[Turn]]]) -> None:
    """A row per turn and contender, for the tower and for the first token; the last turn chunk by chunk."""
    for turn in range(case.turns):
        stock = Sample.of([one[turn].ttft_ms for one in held["no cache"]]).value
        for name, passes in held.items():
            label = f"{case.name} turn {turn + 1}"
            vit, ttft = (
                Sample.of([getattr(one[turn], metric) for one in passes]) for metric in ("vit_ms", "ttft_ms")
            )
            first = Sample.of([one[0].vit_ms for one in passes]).value
            recorder.add(label, name, "vit_ms", "ms", vit, against=("turn 1", first))
            recorder.add(label, name, "ttft_ms", "ms", ttft, against=("no cache", stock))
    for name, passes in held.items():
        label = f"{case.name} turn {case.turns}"
        target = IMAGES_PER_TURN if name in (VITCACHE, COMPUTED, ON_HOST) else None
        images = Sample.of([one[-1].images for one in passes])
        recorder.add(label, name, "encoded", "images", images, target=target, limit=target)
        for chunk in range(len(passes[0][-1].chunk_vit_ms)):
            vit = Sample.of([one[-1].chunk_vit_ms[chunk] for one in passes])
            recorder.add(f"{label} chunk {chunk + 1}", name, "vit_ms", "ms", vit)


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A column per chat: above the tower's time, below the time to the first token, turn by turn."""
    from matplotlib.figure import Figure

    found = [(re.fullmatch(r"(.+) turn (\d+)", row["case"]), row) for row in rows]
    points = [(match[1], int(match[2]), row) for match, row in found if match]
    cases = list(dict.fromkeys(case for case, _, _ in points))
    metrics = {"vit_ms": "vision tower (ms)", "ttft_ms": "first token (ms)"}
    figure = Figure(figsize=(1 + 3 * len(cases), 6.5), layout="constrained")
    panels = figure.subplots(len(metrics), len(cases), squeeze=False, sharex=True)
    for row_of_panels, (metric, title) in zip(panels, metrics.items(), strict=True):
        for axes, name in zip(row_of_panels, cases, strict=True):
            for side in SIDES:
                line = [
                    (turn, row["value"])
                    for case, turn, row in points
                    if (case, row["contender"], row["metric"]) == (name, side, metric)
                ]
                axes.plot(*zip(*line, strict=True), marker=".", label=side)
            axes.set(title=name if metric == "vit_ms" else None, ylim=(0, None))
            axes.xaxis.get_major_locator().set_params(integer=True)
        row_of_panels[0].set_ylabel(title)
    figure.supxlabel("turn, one new image each")
    figure.suptitle(f"{rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['commit']}")
    panels[0][0].legend(fontsize=7)
    return figure
