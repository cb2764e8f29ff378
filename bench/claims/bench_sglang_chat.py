"""Claims about real engines of SGLang: with vitcache and a host tier, a chat encodes each image once.

Engines answer one chat: SGLang as released, with vitcache's plug-in and the same bytes for rows, and with a
host tier beside them. The results fill the tables of SGLang's pull request #22038, which SGLang 0.5.23
contains: milliseconds of the vision tower per chunk of prefill, time to the first token per turn, the number
of images in one request, and the right answers of a model that reads digits. Each engine is a process of its
own. An engine of a model with weights whose tokens differ from stock's gets no number.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vitcache.bench.claims.sglang_chat_figure import draw as draw
from vitcache.bench.claims.sglang_chat_results import SWAPPED, add_answers, add_limit, add_turns
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU, GPU
from vitcache.bench.harness.timing import Timer
from vitcache.bench.sglang.chat_engines import HOST_TIER, MODELS, NAMES, STOCK, VITCACHE, EngineOptions
from vitcache.bench.sglang.chat_start import Step, run_engine

NAME = "sglang_chat"
REQUIRES = "sglang"
CLAIMS_CPU = True
FOLDER = Path("build/bench-sglang").absolute()


class Chat(NamedTuple):
    """A chat with one new image of `width` x `height` pixels per turn; each engine runs it `passes` times."""

    width: int
    height: int
    turns: int
    passes: int

    @property
    def name(self) -> str:
        """The size of the images."""
        return f"{self.width}x{self.height}"


class Limit(NamedTuple):
    """Requests with 1, 2, 4, ... up to `most` new images, until memory ends.

    The scheduler may add `added_bytes` to its data. None: the memory of the device ends it.
    """

    width: int
    height: int
    most: int
    added_bytes: int | None


class Questions(NamedTuple):
    """Questions about digits, as in the bench `accuracy`: `chats` chats of `turns` turns about `cards` cards.

    `target` is the expected share of right answers; None if the training is too short for a target.
    """

    chats: int
    turns: int
    cards: int
    target: float | None


@dataclass(frozen=True)
class ChatCase:
    """The engines of one model, and the parts of the chat that they answer.

    `cache_mb` is the size of SGLang's cache of embeddings, and of the device tier of vitcache. The contender
    with a host tier has `device_bytes`, if they are not None, and `host_bytes`. `num_tokens` is the size of
    the KV cache; None: SGLang computes it.
    """

    name: str
    model: str
    chunk_tokens: int
    num_tokens: int | None
    cache_mb: int
    host_bytes: int
    device_bytes: int | None = None
    chats: tuple[Chat, ...] = ()
    limit: Limit | None = None
    questions: Questions | None = None
    contenders: tuple[str, ...] = NAMES

    def engine(self, contender: str) -> EngineOptions:
        """One engine of this case."""
        return EngineOptions(
            contender,
            self.model,
            self.chunk_tokens,
            self.num_tokens,
            self.cache_mb,
            self.device_bytes,
            self.host_bytes,
        )

    def contains(self, chat: Chat) -> bool:
        """Whether the device tier of the contender with a host tier can contain an image of a chat."""
        size = self.cache_mb << 20 if self.device_bytes is None else self.device_bytes
        return MODELS[self.model].image_bytes(chat.width, chat.height) <= size

    def steps(self, contender: str, device_type: str) -> list[Step]:
        """The steps of an engine. The last one may end its process."""
        found: list[Step] = []
        for width, height, turns, passes in self.chats:
            # On a GPU the first batch of a new size takes longer, so each turn is warmed up.
            sizes = {"turns": turns, "passes": passes, "warm_up": turns if device_type == GPU else 1}
            found.append((f"{width}x{height}", "turns", {"size": (width, height), **sizes}))
        if self.questions is not None:
            asked = {name: getattr(self.questions, name) for name in ("chats", "turns", "cards")}
            found.append(("answers", "answers", asked))
            if contender == HOST_TIER:
                found.append(("swapped", "answers", {**asked, "are_swapped": True}))
        if self.limit is not None:
            width, height, most, added_bytes = self.limit
            added = {"most": most, "added_bytes": added_bytes}
            found.append(("limit", "limit", {"size": (width, height), **added}))
        return found


@dataclass(frozen=True)
class CpuChatCase(ChatCase):
    """Engines on the CPU, with a model whose rows are small, and whose images have the real sizes."""

    RUNS_ON: ClassVar[str] = CPU


@dataclass(frozen=True)
class GpuChatCase(ChatCase):
    """Engines on a GPU, with a model of a real size."""

    RUNS_ON: ClassVar[str] = GPU


SIZES = ((1280, 720), (1920, 1080), (2560, 1440))
TINY_TURNS = (6, 4, 3)
TINY_PASSES = (3, 2, 1)
CASES: dict[str, list[ChatCase]] = {
    "full": [
        CpuChatCase(
            "chat, tiny model",
            "tiny",
            chunk_tokens=8192,
            num_tokens=20_480,
            cache_mb=1,  # about as many rows as 100 MiB contain of Qwen3-VL-8B: see `chat_models`
            host_bytes=16 << 20,
            chats=tuple(
                Chat(*size, turns, passes)
                for size, turns, passes in zip(SIZES, TINY_TURNS, TINY_PASSES, strict=True)
            ),
            limit=Limit(*SIZES[0], most=32, added_bytes=672 << 20),
        ),
        GpuChatCase(
            "chat, 8b model",
            "8b",
            chunk_tokens=8192,
            num_tokens=None,
            cache_mb=100,  # SGLang's default
            host_bytes=4 << 30,
            chats=tuple(Chat(*size, 8, 3) for size in SIZES),
            limit=Limit(*SIZES[0], most=256, added_bytes=None),
        ),
        ChatCase(
            "digits, reader model",
            "reader",
            chunk_tokens=16,
            num_tokens=1024,
            cache_mb=1,
            device_bytes=12 << 10,  # 4 cards
            host_bytes=16 << 20,
            questions=Questions(100, 4, 90, target=0.9),
        ),
    ],
    "smoke": [
        ChatCase(
            "all parts, untrained reader",
            "reader-untrained",
            chunk_tokens=32,
            num_tokens=1024,
            cache_mb=1,
            device_bytes=12 << 10,
            host_bytes=1 << 20,
            chats=(Chat(16, 16, turns=2, passes=1),),
            limit=Limit(16, 16, most=2, added_bytes=1 << 30),
            questions=Questions(4, 2, 6, target=None),
            contenders=(STOCK, HOST_TIER),
        )
    ],
}


def run_case(case: ChatCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Run the engines of one case, one after the other; yields a label before each."""
    if case.questions is not None:
        from vitcache.bench.chats.digits import load_digits

        load_digits()  # if a package is missing, the error names it in one line
    results: dict[str, dict[str, Any]] = {}
    for name in case.contenders:
        yield name
        steps = case.steps(name, timer.device.type)
        results[name] = run_engine(
            case.engine(name), steps, FOLDER, timer.device.type, may_end=case.limit is not None
        )
        for chat in case.chats:
            check(name, results[name][chat.name], results[STOCK][chat.name], case.model)
    for chat in case.chats:
        found = {name: taken[chat.name] for name, taken in results.items()}
        add_turns(recorder, chat.name, found, is_judged=case.contains(chat))
    if case.limit is not None:
        label = f"{case.limit.width}x{case.limit.height}, {case.model} model"
        add_limit(recorder, label, {name: taken["limit"] for name, taken in results.items()})
    if case.questions is not None:
        answers = {name: taken["answers"] for name, taken in results.items()}
        answers[SWAPPED] = results[HOST_TIER]["swapped"]
        if not answers[HOST_TIER]["demotions"]:
            raise RuntimeError(f"{HOST_TIER} has demoted no card, so the host tier has given no rows")
        label = f"{case.questions.chats} chats of {case.questions.turns}"
        add_answers(recorder, label, answers, case.questions.target)


def check(name: str, answers: list[dict[str, Any]], stock: list[dict[str, Any]], model: str) -> None:
    """Raise RuntimeError if an engine answers with other tokens than stock, or without vitcache."""
    if name in (VITCACHE, HOST_TIER) and not answers[-1]["steps"]:
        raise RuntimeError(f"{name} has placed no step: it gets no number")
    if model == "8b":
        return  # the weights of SGLang give tokens that mean nothing
    tokens, expected = ([answer["tokens"] for answer in side] for side in (answers, stock))
    if any(map(operator.ne, tokens, expected)):
        raise RuntimeError(
            f"{name} answers with the tokens {tokens}, stock with {expected}: it gets no number"
        )
