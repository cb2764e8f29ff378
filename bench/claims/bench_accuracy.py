"""Claim: a model answers every question about images alike, with the cache and without it.

A tiny Qwen3-VL learns on the CPU to read handwritten digits. Then it answers questions about held-out digits,
in chats that show one more image per turn. As a check of the bench itself, two cache entries are swapped at
the end: that must change answers.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vitcache.bench.chats.lessons import CARDS_PER_STEP, DECKS, LESSONS
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.cache.embedding_cache import EmbeddingCache

if TYPE_CHECKING:  # `run_case` checks that the packages are installed before it imports digits
    from matplotlib.figure import Figure

    from vitcache.bench.chats.digits import Chat

NAME = "accuracy"
CLAIMS_CPU = True
REQUIRED = ("transformers", "sklearn", "PIL")
ON_DEVICE = 4  # capacity of the device tier in cards, if there is a host tier


@dataclass(frozen=True)
class AccuracyCase:
    """The training, and then `chats` chats of `turns` turns about `cards` held-out cards.

    `lessons` are those of `teach`; `decks` is the number of times that the training cards use each digit.
    `target` is the expected share of right answers; None if the training is too short for a target.
    """

    chats: int
    turns: int
    cards: int
    decks: int
    lessons: tuple[tuple[int, int], ...]
    cards_per_step: int
    target: float | None

    @property
    def name(self) -> str:
        """The number of chats and of turns."""
        return f"{self.chats} chats of {self.turns}"


CASES = {
    "full": [AccuracyCase(100, 4, 90, DECKS, LESSONS, CARDS_PER_STEP, target=0.9)],
    "smoke": [AccuracyCase(12, 2, 8, 1, ((60, 1),), cards_per_step=32, target=None)],
}


class Result(NamedTuple):
    """The answers of one side, question by question, and the share of its images that hit the cache."""

    answers: list[int]
    hit_share: float


def run_case(case: AccuracyCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Train the model, then compare the answers of all sides; yields a label before each part."""
    missing = [package for package in REQUIRED if find_spec(package) is None]
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)}; run: pip install 'vitcache[demo]'")
    from vitcache.bench.chats.digits import deal, load_cards, most_asked
    from vitcache.bench.chats.reader import SIZE, build_reader, teach
    from vitcache.demo.model import build_processor, share_weights
    from vitcache.demo.stock_side import StockSide
    from vitcache.demo.vitcache_side import AttachedSide, CachedSide, make_cache

    yield "cards"
    processor = build_processor(SIZE)
    cards, held_out = load_cards(processor, case.decks)
    model = build_reader()
    for step, loss in teach(model, cards, case.lessons, case.cards_per_step):
        yield f"lesson {step}, loss {loss:.3f}"
    model.to(timer.device)
    rng = random.Random(1)
    cards = held_out[: case.cards]
    chats = [deal(cards, case.turns, rng) for _ in range(case.chats)]
    pictures = [card.picture for card in cards]

    def cached(**tiers: int) -> Any:
        shared = share_weights(model)
        return CachedSide(shared, processor, make_cache(shared, pictures, **tiers))

    sides = {
        "stock": StockSide(model),
        "attach": AttachedSide(share_weights(model), pictures),
        "pipeline": cached(),
        "host tier": cached(on_device=ON_DEVICE),
    }
    results: dict[str, Result] = {}
    with torch.no_grad():
        for name, side in sides.items():
            yield name
            results[name] = ask(side, chats)
        if not sides["host tier"].cache.stats().demotions:
            raise RuntimeError(
                f"expected demotions, as {len(cards)} cards exceed a device tier of {ON_DEVICE} cards, got 0"
            )
        yield "swapped"
        side = sides["pipeline"]
        swap(side.cache, *(side.key(card.picture) for card in most_asked(chats)))
        results["swapped"] = ask(side, chats)
    expected = [chat.answer(question) for chat in chats for question in chat.questions]
    add_results(case, recorder, results, expected)


def ask(side: Any, chats: Sequence[Chat]) -> Result:
    """Ask every question of every chat; each prompt contains all earlier cards, questions and answers."""
    from vitcache.demo.stock_side import pick_token

    answers, hits, encoded = [], 0, 0
    for chat in chats:
        for prompt in chat.prompts(side.model.config):
            answer = side.answer(prompt)
            answers.append(pick_token(side.model, answer.hidden))
            hits += answer.hits
            encoded += answer.encoded
    return Result(answers, hits / (hits + encoded))


def swap(cache: EmbeddingCache, first: bytes, second: bytes) -> None:
    """Exchange the rows of two keys; both must be in the cache."""
    rows = []
    for key in (second, first):
        lease = cache.get(key)
        if lease is None:
            raise RuntimeError(
                "expected an entry for each of the two cards to swap, got none for one of them"
            )
        with lease:
            rows.append(lease.to_tensor())
    for key, swapped in zip((first, second), rows, strict=True):
        cache.put(key, swapped)


def add_results(
    case: AccuracyCase, recorder: Recorder, results: dict[str, Result], expected: list[int]
) -> None:
    """Add three results for each side: right answers, answers unlike the stock model's, the hit share."""
    right = {
        name: sum(map(operator.eq, result.answers, expected)) / len(expected)
        for name, result in results.items()
    }
    for name, result in results.items():
        # Without a target, no limit applies: after a short training, a swap may correct answers by chance.
        limit = case.target
        if limit is not None and name != "stock":
            limit = right["stock"] - (name == "swapped") / len(expected)
        recorder.add(
            case.name,
            name,
            "accuracy",
            "share",
            Sample.of([right[name]]),
            against=("stock", right["stock"]) if right["stock"] else None,
            target=limit,
            limit=limit,
            at_least=name != "swapped",
        )
        if name == "stock":
            continue
        different = sum(map(operator.ne, result.answers, results["stock"].answers))
        least = int(name == "swapped")
        recorder.add(
            case.name,
            name,
            "different_answers",
            f"of {len(expected)}",
            Sample.of([float(different)]),
            target=least,
            limit=least,
            at_least=name == "swapped",
        )
        recorder.add(case.name, name, "hit_share", "of images", Sample.of([result.hit_share]))


def draw(rows: figures.Rows) -> Figure:
    """Draw a bar per side: the share of right answers; its label counts answers unlike the stock model's."""
    accuracy = [row for row in rows if row["metric"] == "accuracy"]
    different = {row["contender"]: row for row in rows if row["metric"] == "different_answers"}
    names = {
        "stock": "stock model",
        "attach": "vitcache, attach",
        "pipeline": "vitcache, pipeline",
        "host tier": "vitcache, pipeline\nwith a host tier",
        "swapped": "two entries swapped\n(check of the bench)",
    }
    figure, [[axes]] = figures.open_figure(height=0.6 + 0.5 * len(accuracy))
    least = accuracy[0]["target"] or 0.0
    looks = figures.styles(("attach", "stock", "pipeline", "swapped", "host tier"))
    for place, row in enumerate(accuracy):
        name, count = row["contender"], different.get(row["contender"])
        axes.barh(place, 100 * row["value"], 0.7, **looks[name].bar())
        words = f" {100 * row['value']:.1f} %"
        words += f"; {count['value']:.0f} answers {count['unit']} differ from stock" if count else ""
        axes.annotate(words, (100 * max(row["value"], least), place), va="center", size=9)
    axes.set_yticks(range(len(accuracy)), [names[row["contender"]] for row in accuracy])
    axes.set(xlabel="right answers (percent)", ylabel="side", xlim=(0, 160), ylim=(len(accuracy) - 0.4, -0.6))
    axes.set_xticks(range(0, 101, 20))
    axes.grid(visible=False, axis="y")
    stock = accuracy[0]
    if stock["target"] is not None:
        figures.target(axes, 100 * stock["target"], f"target of stock: {stock['target']:.0%}", upright=True)
    sides = [different[name]["value"] for name in ("attach", "pipeline", "host tier")]
    asked = next(iter(different.values()))["unit"].removeprefix("of ")
    same = f"All {asked} answers with the cache are those of the stock model"
    counts = figures.span(sides, "{:.0f}")
    wrong = f"With the cache {counts} of {asked} answers are unlike those of the stock model"
    note = (
        f"A tiny Qwen3-VL, which has learned to read digits, answers in {stock['case']} turns. Last bar: the "
        "rows of two cache entries are exchanged on purpose, to show that the bench sees wrong rows."
    )
    title = f"{wrong if any(sides) else same}, which is right in {100 * stock['value']:.1f} %"
    return figures.finish(figure, rows, title, note, legend=False)
