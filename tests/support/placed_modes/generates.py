"""Modes of `generate`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from placed_modes.side import Mode, Side

SAMPLING = {"do_sample": True, "temperature": 1.5}


def _mode(**options: Any) -> Mode:
    return lambda side: side.generate(side.images(0, 1), **options)


def _padded(where: str, **options: Any) -> Mode:
    return lambda side: side.generate(side.two_chats(where), **options)


def _assisted(side: Side) -> list[Tensor]:
    return side.generate(side.images(0, 1), assistant_model=side.assistant)


GENERATES: dict[str, Mode] = {
    "greedy": _mode(),
    "batch padded left": _padded("left"),
    "batch padded right": _padded("right"),
    "beams": _mode(num_beams=3),
    "beams of a batch": _padded("left", num_beams=3),
    "two beams returned": _mode(num_beams=2, num_return_sequences=2),
    "sampling": _mode(**SAMPLING),
    "two samples returned": _mode(**SAMPLING, num_return_sequences=2),
    "assisted": _assisted,
    "prompt lookup": _mode(prompt_lookup_num_tokens=2),
    "static cache": _mode(cache_implementation="static"),
    "prefill chunks": _mode(prefill_chunk_size=7),
}
