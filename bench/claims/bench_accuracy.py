"""Claim: a model reads the same answers out of images with the cache as without, each of them.

A tiny Qwen3-VL learns on the CPU to read handwritten digits, and is then asked about held-out ones in chats
that show one more image per turn. Two swapped entries in the cache must show in the same table.
"""

from __future__ import annotations

import operator
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.cache.embedding_cache import EmbeddingCache

if TYPE_CHECKING:  # digits needs what `run_case` looks for first
    from matplotlib.figure import Figure

    from vitcache.bench.chats.digits import Card, Chat

NAME = "accuracy"
CLAIMS_CPU = True
REQUIRED = ("transformers", "sklearn", "PIL")
ON_DEVICE = 4  # cards that the device tier has room for where there is a host tier


@dataclass(frozen=True)
class AccuracyCase:
    """`chats` of `turns` turns about `cards` held-out cards, after some teaching.

    Lessons are as in `teach`, on cards from `decks` of all digits. `target` is the share of right answers to
    reach, None where the lessons are too few to ask for one.
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
        """Chats and turns."""
        return f"{self.chats} chats of {self.turns}"


CASES = {
    "full": [AccuracyCase(100, 4, 90, 6, ((300, 1), (300, 2), (400, 4)), cards_per_step=64, target=0.9)],
    "smoke": [AccuracyCase(12, 2, 8, 1, ((60, 1),), cards_per_step=32, target=None)],
}


class Result(NamedTuple):
    """What one side answered, question by question, and the share of images that it found in its cache."""

    answers: list[int]
    hit_share: float


def run_case(case: AccuracyCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Teach a reader, then compare its answers through every side; yields what it does next."""
    missing = [package for package in REQUIRED if find_spec(package) is None]
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)}; run: pip install 'vitcache[demo]'")
    from vitcache.bench.chats.digits import deal, load_cards
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
    chance = random.Random(1)
    cards = held_out[: case.cards]
    chats = [deal(cards, case.turns, chance) for _ in range(case.chats)]
    pictures = [card.picture for card in cards]

    def cached(**tiers: int) -> Any:
        double = share_weights(model)
        return CachedSide(double, processor, make_cache(double, pictures, **tiers))

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
                f"{len(cards)} cards left the device tier, which has room for {ON_DEVICE}, alone"
            )
        yield "swapped"
        side = sides["pipeline"]
        swap(side.cache, *(side.key(card.picture) for card in most_asked(chats)))
        results["swapped"] = ask(side, chats)
    expected = [chat.answer(question) for chat in chats for question in chat.questions]
    add_results(case, recorder, results, expected)


def ask(side: Any, chats: Sequence[Chat]) -> Result:
    """Every question of every chat, each with all that was said and shown before it."""
    from vitcache.demo.stock_side import pick_token

    answers, hits, encoded = [], 0, 0
    for chat in chats:
        for prompt in chat.prompts(side.model.config):
            answer = side.answer(prompt)
            answers.append(pick_token(side.model, answer.hidden))
            hits += answer.hits
            encoded += answer.encoded
    return Result(answers, hits / (hits + encoded))


def most_asked(chats: Sequence[Chat]) -> list[Card]:
    """The two cards that most questions are about."""
    asked = Counter(id(chat.cards[question.card]) for chat in chats for question in chat.questions)
    cards = {id(card): card for chat in chats for card in chat.cards}
    return [cards[identity] for identity, _ in asked.most_common(2)]


def swap(cache: EmbeddingCache, one: bytes, other: bytes) -> None:
    """Put the rows of each key under the other one."""
    rows = []
    for key in (other, one):
        lease = cache.get(key)
        if lease is None:
            raise RuntimeError("a card that was asked about has no entry to swap")
        with lease:
            rows.append(lease.to_tensor())
    for key, swapped in zip((one, other), rows, strict=True):
        cache.put(key, swapped)


def add_results(
    case: AccuracyCase, recorder: Recorder, results: dict[str, Result], expected: list[int]
) -> None:
    """Add three rows for each side: right answers, those unlike the stock model's, images found."""
    right = {
        name: sum(map(operator.eq, result.answers, expected)) / len(expected)
        for name, result in results.items()
    }
    for name, result in results.items():
        # Where the model has learnt too little, a swap may mend as many answers as it spoils.
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


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A bar per side: the share of right answers, and how many are not those of the stock model."""
    from matplotlib.figure import Figure

    accuracy = [row for row in rows if row["metric"] == "accuracy"]
    different = {row["contender"]: row["value"] for row in rows if row["metric"] == "different_answers"}
    figure = Figure(figsize=(6.5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar([row["contender"] for row in accuracy], [row["value"] for row in accuracy])
    counts = [different.get(row["contender"]) for row in accuracy]
    axes.bar_label(bars, ["" if count is None else f"{count:.0f} different" for count in counts])
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("share of right answers")
    axes.set_title(f"{rows[0]['case']}, {rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['commit']}")
    return figure
