"""Claim: in a chat with one new image per turn, the vision tower encodes one image per turn.

The model is Qwen3-VL with random weights. One driver (`ChunkedPrefill`) runs all contenders; they differ in
its `pipeline`. In the cases that end with ``-kv`` the KV cache keeps the tokens of earlier turns. In the
other cases it loses them between turns, as on a busy server, and each turn prefills the whole history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

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
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "multiturn"
IMAGES_PER_TURN = 1  # target of the design, for every turn


@dataclass(frozen=True)
class ChatCase:
    """A chat with one image of ``grid`` patches in each turn; each contender runs it `passes` times."""

    name: str
    grid: tuple[int, int, int]
    keeps_kv: bool
    passes: int
    size: str = "8b"
    turns: int = 8
    chunk_tokens: int = 8192


@dataclass(frozen=True)
class Turn:
    """Time to the first token, time in the vision tower per chunk, and number of encoded images."""

    ttft_ms: float
    chunk_vit_ms: list[float]
    images: int

    @property
    def vit_ms(self) -> float:
        """Milliseconds in the vision tower."""
        return sum(self.chunk_vit_ms)


GRIDS = {"1280x720": (1, 44, 80), "1920x1080": (1, 68, 120), "2560x1440": (1, 90, 160)}
TINY = {"size": "tiny", "turns": 3, "chunk_tokens": 24}
CASES: dict[str, list[ChatCase]] = {
    "full": [
        ChatCase("1280x720", GRIDS["1280x720"], keeps_kv=False, passes=2),
        ChatCase("1920x1080", GRIDS["1920x1080"], keeps_kv=False, passes=1),
        ChatCase("2560x1440", GRIDS["2560x1440"], keeps_kv=False, passes=1),
        ChatCase("1280x720-kv", GRIDS["1280x720"], keeps_kv=True, passes=3),
        ChatCase("1920x1080-kv", GRIDS["1920x1080"], keeps_kv=True, passes=2),
        ChatCase("2560x1440-kv", GRIDS["2560x1440"], keeps_kv=True, passes=1),
    ],
    "smoke": [
        ChatCase("tiny", (1, 8, 8), keeps_kv=False, passes=2, **TINY),
        ChatCase("tiny-kv", (1, 8, 8), keeps_kv=True, passes=1, **TINY),
    ],
}


def run_case(case: ChatCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Run the chat with every contender; yields a label before each part.

    In each round, every contender runs one pass.
    """
    yield "building the model"
    model = load_model(case.size, timer.device)
    chat, tower = Chat(model, case.grid, case.turns), Tower(model)
    with ExitStack() as stack:
        ring = open_ring(timer.device, stack)

        def open_new(name: str, side_stack: ExitStack) -> Side:
            return open_side(name, chat, tower, ring, side_stack, images=case.turns)

        yield "checking"
        expected = None
        for name in SIDES:
            with ExitStack() as side_stack:
                side = open_new(name, side_stack)
                if name not in ENGINES:
                    # Fill the cache turn by turn, so that the comparison below checks the rows of hits.
                    for turn in range(case.turns):
                        build(side, chat, turn * chat.tokens_per_turn, chat.tokens_per_turn)
                        side.between_turns()
                chunks = range(0, len(chat.host_ids), case.chunk_tokens)
                built = torch.cat([build(side, chat, start, case.chunk_tokens) for start in chunks], dim=1)
            expected = built if expected is None else expected
            check_built(name, built, expected)
        del built, expected
        # The first batch of a new size takes longer. "no cache" has a batch of another size in each turn, so
        # the warm-up runs every turn.
        turns = range(1, case.turns + 1)
        for name in ("no cache", VITCACHE):
            yield f"warming up, {name}"
            with ExitStack() as side_stack:
                run_turns(case, chat, tower, open_new(name, side_stack), turns)
        passes: dict[str, list[list[Turn]]] = {name: [] for name in SIDES}
        for number in range(1, case.passes + 1):
            for name in SIDES:
                yield f"{name}, pass {number} of {case.passes}"
                with ExitStack() as side_stack:
                    passes[name].append(run_turns(case, chat, tower, open_new(name, side_stack), turns))
    add_turns(case, recorder, passes)


def build(side: Side, chat: Chat, start: int, tokens: int) -> Tensor:
    """Embed up to `tokens` tokens of the chat, from token `start` on.

    Returns `inputs_embeds` and the deepstack levels in one tensor ``(1 + levels, tokens, hidden)``.
    """
    ids = chat.host_ids[start : start + tokens].to(chat.weight.device)
    deepstack, chunk = chat.deepstack(len(ids)), Chunk(side.items, start, len(ids))
    result = side.pipeline.embed([chunk], ids, chat.weight, deepstack=deepstack)
    if result.errors:
        raise RuntimeError(f"the step has an error: {result.errors[0]}")
    return torch.cat([result.inputs_embeds[None], deepstack])


@torch.no_grad()
def run_turns(case: ChatCase, chat: Chat, tower: Tower, side: Side, turns: Sequence[int]) -> list[Turn]:
    """Run the given turns of a chat with one contender, and measure each turn."""
    from vitcache.adapters.transformers import ChunkedPrefill
    from vitcache.demo.stopwatch import Stopwatch

    driver = ChunkedPrefill(chat.model, side.pipeline, case.chunk_tokens)
    measured = []
    for turn in turns:
        if not case.keeps_kv:
            driver.reset()
        ids, items = chat.prompt(turn), Items(side.items[:turn])
        tower.take_counts()
        num_calls = [0]  # calls of the tower before the first chunk, and after each chunk
        with Stopwatch(chat.weight.device) as first_token:
            for hidden in driver.chunks(ids, items):
                num_calls.append(len(tower.calls))
                last = hidden[:, -1]
            int(chat.model.lm_head(last).argmax())
        calls, images = tower.take_counts()
        chunks = [sum(call.ms() for call in calls[begin:end]) for begin, end in pairwise(num_calls)]
        measured.append(Turn(first_token.ms, chunks, images))
        side.between_turns()
    return measured


def add_turns(case: ChatCase, recorder: Recorder, passes_of: dict[str, list[list[Turn]]]) -> None:
    """Add results per turn and contender: the tower and the first token; the last turn also by chunk.

    `passes_of` has the passes of each contender; a pass is the list of its turns.
    """
    for turn in range(case.turns):
        stock = Sample.of([turns[turn].ttft_ms for turns in passes_of["no cache"]]).value
        for name, passes in passes_of.items():
            label = f"{case.name} turn {turn + 1}"
            vit, ttft = (
                Sample.of([getattr(turns[turn], metric) for turns in passes])
                for metric in ("vit_ms", "ttft_ms")
            )
            first = Sample.of([turns[0].vit_ms for turns in passes]).value
            recorder.add(label, name, "vit_ms", "ms", vit, against=("turn 1", first))
            recorder.add(label, name, "ttft_ms", "ms", ttft, against=("no cache", stock))
    for name, passes in passes_of.items():
        label = f"{case.name} turn {case.turns}"
        target = IMAGES_PER_TURN if name in (VITCACHE, COMPUTED, ON_HOST) else None
        images = Sample.of([turns[-1].images for turns in passes])
        recorder.add(label, name, "encoded", "images", images, target=target, limit=target)
        for chunk in range(len(passes[0][-1].chunk_vit_ms)):
            vit = Sample.of([turns[-1].chunk_vit_ms[chunk] for turns in passes])
            recorder.add(f"{label} chunk {chunk + 1}", name, "vit_ms", "ms", vit)


def draw(rows: figures.Rows) -> Figure:
    """Draw a column per chat, over the turns: the tower's time, and the time to the first token."""
    found = [(re.fullmatch(r"(.+) turn (\d+)", row["case"]), row) for row in rows]
    points = [(match[1], int(match[2]), row) for match, row in found if match]
    cases = list(dict.fromkeys(case for case, _, _ in points))
    kinds = [[case for case in cases if case.endswith("-kv") == keeps] for keeps in (False, True)]
    metrics = {"vit_ms": "vision tower (ms)", "ttft_ms": "first token (ms)"}
    columns = max(map(len, kinds))
    lines = [(kind, metric) for kind in kinds if kind for metric in metrics]
    figure, panels = figures.open_figure(len(lines), columns, height=2.0 * len(lines), sharex=True)
    looks = figures.styles((VITCACHE, *SIDES))
    for line, (kind, metric) in zip(panels, lines, strict=True):
        for axes, name in zip(line, kind, strict=False):
            for side in SIDES:
                chosen = [
                    (turn, row)
                    for case, turn, row in points
                    if (case, row["contender"], row["metric"]) == (name, side, metric)
                ]
                figures.curve(axes, chosen, looks[side], side)
            kept = "KV cache kept" if name.endswith("-kv") else "KV cache lost"
            axes.set(title=f"{name.removesuffix('-kv')}, {kept}", ylim=(0, None))
            axes.set(xlabel="turn, one new image each", ylabel=metrics[metric])
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in line[len(kind) :]:
            axes.set_visible(False)
    encoded = [row for _, _, row in points if row["metric"] == "encoded"]
    own, without = (
        figures.span(figures.values(encoded, name, "value"), "{:.0f}") for name in (VITCACHE, "no cache")
    )
    title = (
        f"In the last turn of a chat vitcache encodes {figures.images(own)}; without a cache, "
        f"{without} encodes run (each chunk encodes its images again)"
    )
    return figures.finish(figure, rows, title, figures.SPREAD)
