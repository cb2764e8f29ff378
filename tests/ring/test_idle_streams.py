"""`take_stream` reuses the streams of closed rings, each on its own device, before it creates a stream."""

from __future__ import annotations

from collections import defaultdict

import pytest

from vitcache._native import Stream
from vitcache.ring import idle_streams
from vitcache.ring.idle_streams import give_stream_back, take_stream

FIRST, SECOND = 0, 1


class Runtime:
    """Creates streams with ascending handles."""

    def __init__(self) -> None:
        self.num_created = 0

    def create_stream(self, device: int) -> Stream:
        self.num_created += 1
        return Stream(self.num_created, device)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setattr(idle_streams, "_idle", defaultdict(list))
    return Runtime()


def take(runtime: Runtime, device: int) -> tuple[int, int]:
    stream = take_stream(runtime, device)  # type: ignore[arg-type]
    return stream.handle, stream.device


def test_take_stream_creates_a_stream_if_none_is_idle(runtime: Runtime) -> None:
    assert [take(runtime, device) for device in (FIRST, SECOND, SECOND)] == [(1, 0), (2, 1), (3, 1)]


def test_take_stream_returns_an_idle_stream_of_its_device_once(runtime: Runtime) -> None:
    give_stream_back(Stream(7, SECOND))
    assert take(runtime, FIRST) == (1, FIRST)
    assert take(runtime, SECOND) == (7, SECOND)
    assert take(runtime, SECOND) == (2, SECOND)
