"""The peak of a call's memory on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache.bench.harness.timing import Timer

CPU = torch.device("cpu")
KIB = 1024


def bytes_of(number: int) -> Tensor:
    return torch.empty(number, dtype=torch.uint8)


def test_peak_bytes_on_the_cpu_counts_the_result_and_freed_temporaries() -> None:
    def call() -> Tensor:
        first = bytes_of(30 * KIB)
        del first
        second = bytes_of(20 * KIB)
        result = bytes_of(15 * KIB)
        del second
        return result

    timer = Timer(CPU, 1)
    assert timer.peak_bytes(call) == 35 * KIB
    assert timer.peak_bytes(lambda: bytes_of(KIB)) == KIB
    assert timer.peak_bytes(lambda: None) == 0


def test_peak_bytes_on_the_cpu_counts_memory_inside_of_an_operation() -> None:
    values = torch.arange(KIB, dtype=torch.float32)
    assert Timer(CPU, 1).peak_bytes(values.median) >= values.nbytes  # its result has one element
