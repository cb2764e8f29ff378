"""`Change`: one change of a model, and how an attachment notices it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# How an attachment notices a change. The page explains these words.
AT_ONCE = "at the next call"
NAMED = "at the next call; switching back finds the earlier entries"
BY_CALL = "`invalidate()`"
BYPASSED = "these calls are not cached"
REFUSED = "the next call raises RuntimeError: detach the model, and attach it again"
KEPT = "the entries stay"

Steps = Callable[[Any], Iterator[None]]


@dataclass(frozen=True)
class Change:
    """One change of a model.

    `steps(scene)` is a generator. It prepares the model, yields once, and then yields after each change; the
    model is attached at the first `yield`. A change of a class or of the process is undone at its end.

    Attributes
    ----------
    row
        The row of the page: the first cell.
    name
        The name of the change in its row.
    noticed
        How it is noticed, one of the constants of this module.
    kind
        The kind that `stats().changes` counts; empty if it counts none.
    families
        The tiny models that are changed.
    in_bytes
        Whether `fingerprint_calls` finds it, too.
    ranks
        The numbers of processes: not empty if the change needs a process group.
    """

    row: str
    name: str
    noticed: str
    kind: str
    steps: Steps
    families: tuple[str, ...]
    in_bytes: bool
    ranks: tuple[int, ...]


CHANGES: dict[tuple[str, str], Change] = {}
ONE = ("internvl",)
SEVERAL = ("internvl", "qwen3_vl", "llava_onevision")


def change(
    row: str,
    name: str,
    kind: str = "",
    noticed: str = AT_ONCE,
    *,
    families: tuple[str, ...] = ONE,
    in_bytes: bool = False,
    ranks: tuple[int, ...] = (),
) -> Callable[[Steps], Steps]:
    """Register a generator function as a `Change`."""

    def register(steps: Steps) -> Steps:
        if (row, name) in CHANGES:
            raise ValueError(f"two changes of the row {row!r} are named {name!r}")
        CHANGES[row, name] = Change(row, name, noticed, kind, steps, families, in_bytes, ranks)
        return steps

    return register
