"""Streams of closed rings go to the next rings of their device, and are never made twice without need."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from vitcache.ring import idle_streams
from vitcache.ring.idle_streams import give_stream_back, take_stream

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Runtime:
    """Makes streams with ascending handles, and notes on which device."""

    def __init__(self) -> None:
        self.current: torch.device | None = None
        self.made: list[torch.device | None] = []

    def create_stream(self) -> int:
        self.made.append(self.current)
        return len(self.made)

    @contextlib.contextmanager
    def on(self, device: torch.device):  # type: ignore[no-untyped-def]
        self.current = device
        yield
        self.current = None


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    monkeypatch.setattr(idle_streams, "_idle", defaultdict(list))
    monkeypatch.setattr(idle_streams.torch, "cuda", SimpleNamespace(device=runtime.on))
    return runtime


def test_a_stream_is_made_on_its_device_where_none_is_idle(runtime: Runtime) -> None:
    assert [take_stream(runtime, device) for device in (FIRST, SECOND, SECOND)] == [1, 2, 3]  # type: ignore[arg-type]
    assert runtime.made == [FIRST, SECOND, SECOND]


def test_a_stream_that_was_given_back_serves_its_own_device_once(runtime: Runtime) -> None:
    give_stream_back(SECOND, 7)
    assert take_stream(runtime, FIRST) == 1  # type: ignore[arg-type]
    assert take_stream(runtime, SECOND) == 7  # type: ignore[arg-type]
    assert take_stream(runtime, SECOND) == 2  # type: ignore[arg-type]
