"""The cases of the bench `sglang_chat`: chats, limits and questions for the engines of one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from vitcache.bench.harness.registry import CPU, GPU
from vitcache.bench.sglang.chat_engines import HOST_TIER, MODELS, NAMES, EngineOptions
from vitcache.bench.sglang.chat_start import Step


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
