"""The ranges that a call opens while tracing is on, as `torch.profiler` shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from vitcache import tracing

NAMES = tuple(f"vitcache.{name}" for name in ("key", "copy", "encode", "place"))


@pytest.fixture
def tracing_on() -> Iterator[None]:
    tracing.enable()
    yield
    tracing.disable()


class Ranges:
    """The ranges of a call: their numbers by name, and the names around each of them."""

    def __init__(self, call: Callable[[], object]) -> None:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
        averages = {event.key: event.count for event in profile.key_averages() if event.key in NAMES}
        self.counts = {name.removeprefix("vitcache."): averages.get(name, 0) for name in NAMES}
        self.outer: dict[str, set[str]] = {name: set() for name in self.counts}
        for event in profile.events():
            if event.name in NAMES:
                parent = event.cpu_parent
                while parent is not None:
                    self.outer[event.name.removeprefix("vitcache.")].add(parent.name)
                    parent = parent.cpu_parent

    @property
    def nested(self) -> set[tuple[str, str]]:
        """Each pair of a range and a range of vitcache around it."""
        return {(name, outer) for name, found in self.outer.items() for outer in found if outer in NAMES}


def counts(*, key: int = 0, copy: int = 0, encode: int = 0, place: int = 0) -> dict[str, int]:
    return {"key": key, "copy": copy, "encode": encode, "place": place}
