"""Encode times on a GPU: the time of the device, read without a wait of the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from machine import Machine

from vitcache.cache.call_arguments import MS_PER_ROW
from vitcache.tiers.encode_times import EncodeTimes

WIDTH = 1024
SLOW_MS = 20.0


def encode(gpu: Machine, times: EncodeTimes) -> None:
    start = times.start()
    gpu.slow(SLOW_MS)
    times.stop(start, 10, WIDTH)


def test_encode_time_is_that_of_the_device_and_the_host_does_not_wait(gpu: Machine) -> None:
    times = EncodeTimes(MS_PER_ROW, torch.device(gpu.device, None if gpu.dry else 0))
    encode(gpu, times)  # creates the events
    gpu.synchronize()
    with gpu.no_host_sync():
        for _ in range(3):
            encode(gpu, times)
    gpu.synchronize()
    found = 10 * times.by_width()[WIDTH]
    if gpu.dry:
        assert 0 <= found < SLOW_MS
    else:
        assert found == pytest.approx(SLOW_MS, rel=0.5)


def test_encode_in_a_captured_graph_is_not_measured_and_breaks_no_capture(gpu: Machine) -> None:
    times = EncodeTimes(MS_PER_ROW, torch.device(gpu.device, None if gpu.dry else 0))
    rows = torch.zeros(10, WIDTH, device=gpu.device)
    encode(gpu, times)  # its end is not read yet
    marks: list[Any] = []

    def body() -> None:
        marks.append(times.start())
        rows.add_(1)
        times.stop(marks[-1], 10, WIDTH)

    gpu.graph(body)()
    gpu.synchronize()
    assert rows.eq(2).all()
    if not gpu.dry:
        assert [mark is None for mark in marks] == [False, True]
