"""A finding of the probe, and the machine that the probe asks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")

OK, BAD, NUMBER, LEFT_OUT = "ok", "BAD", "number", "left out"


@dataclass(frozen=True)
class Finding:
    """One fact. `verdict` is ok or BAD for a contract, number for a measurement, left out for neither."""

    item: str
    verdict: str
    value: float | None = None
    unit: str = ""
    text: str = ""

    @classmethod
    def of(cls, item: str, holds: bool, text: str = "") -> Finding:
        """A finding that is ok if a contract holds."""
        return cls(item, OK if holds else BAD, text=text)

    @classmethod
    def number(cls, item: str, value: float, unit: str, text: str = "") -> Finding:
        """A finding that is a measurement."""
        return cls(item, NUMBER, float(f"{value:.4g}"), unit, text)

    def fields(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        value = "" if self.value is None else f"{self.value:g} {self.unit}"
        return f"{self.verdict:<9}{self.item:<34} {value:<12} {self.text}".rstrip()


Item = Callable[["Subject"], Iterator[Finding]]


@dataclass(frozen=True)
class Subject:
    """The device that the probe asks; without a GPU the CPU, at smoke sizes."""

    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def size(self, full: _T, smoke: _T) -> _T:
        """`full` on a GPU, `smoke` without one."""
        return full if self.on_gpu else smoke

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def host_us(
        self, call: Callable[[_T], object], prepare: Callable[[], _T], done: Callable[[_T], object]
    ) -> float:
        """Return the median microseconds until `call` returns, on an idle device.

        Its argument is made by `prepare` before each call and passed to `done` after it; both are not timed.
        """
        values = []
        for _ in range(self.size(60, 3)):
            argument = prepare()
            self.synchronize()
            begin = time.perf_counter()
            call(argument)
            values.append((time.perf_counter() - begin) * 1e6)
            self.synchronize()
            done(argument)
        return statistics.median(values[len(values) // 6 :])
