"""`EncodeTimes`: how long an encoder needs for a row, from the encodes that were measured."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import Any, NamedTuple

import torch

from vitcache.device.streams import Event, is_capturing

# Weight of each measurement after one more: about ten count.
_KEEP = 0.9

# A measurement counts as at most this multiple of the average: an encode may wait for a compilation.
_MOST = 8.0

_MOST_MS = 1e12
_MOST_OPEN = 64  # pairs of events that are not complete yet

Mark = Any  # an `Event` of CUDA, or a time in seconds on the CPU


class _Sums(NamedTuple):
    number: int
    ms: float
    rows: float


class EncodeTimes:
    """The encode time of a row, as a moving average for each width of rows. Any thread may call any method.

    The average is the sum of the times over the sum of the rows, so large items count more than small ones.
    The first measurement of a width is dropped when the second one is noted: the first encode of a process
    loads kernels and allocates memory. No call waits for the device. If two threads note a time at once, one
    of the two may be lost.

    Parameters
    ----------
    ms_per_row
        Milliseconds of a row of a width that was not measured yet.
    device
        Device of the encoder whose times `start` and `stop` measure.
    """

    def __init__(self, ms_per_row: float, device: torch.device) -> None:
        self._ms_per_row = ms_per_row
        self._device = device
        self._sums: dict[int, _Sums] = {}
        self._open: deque[tuple[Event, Event, int, int]] = deque(maxlen=_MOST_OPEN)

    def note(self, num_rows: int, row_width: int, ms: float) -> None:
        """Note that `num_rows` rows of `row_width` elements were encoded in `ms` milliseconds."""
        if num_rows <= 0:
            return
        ms = min(ms, _MOST_MS)
        old = self._sums.get(row_width)
        if old is None or old.number == 1:
            self._sums[row_width] = _Sums(1 if old is None else 2, ms, float(num_rows))
            return
        average = old.ms / old.rows
        if average > 0:
            ms = min(ms, _MOST * average * num_rows)
        self._sums[row_width] = _Sums(2, _KEEP * old.ms + ms, _KEEP * old.rows + num_rows)

    def expected_ms(self, num_rows: int, row_width: int) -> float:
        """Return the expected encode time of `num_rows` rows in milliseconds."""
        self._collect()
        sums = self._sums.get(row_width)
        return num_rows * (self._ms_per_row if sums is None else sums.ms / sums.rows)

    def by_width(self) -> dict[int, float]:
        """Return the measured milliseconds of a row by the width of the row."""
        self._collect()
        return {width: sums.ms / sums.rows for width, sums in self._sums.copy().items()}

    def start(self) -> Mark:
        """Return the mark of an encode that begins now, on the current stream; None: it is not measured.

        An encode is not measured while its stream captures a CUDA graph.
        """
        return self._mark()

    def stop(self, start: Mark, num_rows: int, row_width: int) -> None:
        """Note the end of the encode that began at `start`, on the same stream.

        On CUDA the time is read by a later call, when the device has reached the end.
        """
        end = None if start is None else self._mark()
        if end is None:
            return
        if isinstance(end, Event):
            self._open.append((start, end, num_rows, row_width))
            self._collect()
        else:
            self.note(num_rows, row_width, 1e3 * (end - start))

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return perf_counter()
        if is_capturing(self._device):
            return None
        event = Event(timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _collect(self) -> None:
        """Note the encodes whose end the device has reached."""
        while self._open:
            try:
                pair = self._open.popleft()
            except IndexError:  # another thread has taken it
                return
            start, end, num_rows, row_width = pair
            if not end.query():
                self._open.appendleft(pair)
                return
            self.note(num_rows, row_width, end.ms_since(start))
