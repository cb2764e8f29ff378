"""How long a worker's encoder runs, and whether its loads are hidden behind other work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from vitcache.adapters.vllm.counts import Counts
from vitcache.adapters.vllm.stopwatch import Mark, Stopwatch

# Two events are about as exact. A load whose copy ends later than this after the encoder's stream asks for it
# counts as exposed.
HIDDEN_MS = 0.02


class StepTimes:
    """Times of one worker's steps, added to counters once their marks are complete.

    Parameters
    ----------
    device
        The worker's device.
    counts
        Gets the counters "encode_seconds", "loads_hidden", "loads_exposed", "loads_placed" and
        "load_exposed_seconds".
    note
        Called with the rows of each encode and its milliseconds; None: nothing needs them.

    Attributes
    ----------
    encoded_rows
        Rows whose encode time was added to "encode_seconds".

    Notes
    -----
    Only the worker's thread may call. No call waits for the device.
    """

    def __init__(
        self, device: torch.device, counts: Counts, note: Callable[[int, float], None] | None = None
    ) -> None:
        self._stopwatch = Stopwatch(device)
        self._on_cuda = device.type == "cuda"
        self._counts = counts
        self._note = note
        self.encoded_rows = 0
        self._encode_start: Mark = None
        self._load_start: Mark = None
        self._loaded: Mark = None
        self._reads_start: Mark = None

    def start_encoder(self) -> None:
        """Note that the encoder is about to run on the current stream."""
        self._encode_start = self._stopwatch.mark()

    def stop_encoder(self, num_rows: int) -> None:
        """Note that the encoder has made `num_rows` rows. Later calls in the step do nothing."""
        if self._encode_start is None:
            return

        def count(encode_ms: float) -> None:
            self._counts.add("encode_seconds", encode_ms / 1e3)
            self.encoded_rows += num_rows
            if self._note is not None:
                self._note(num_rows, encode_ms)

        self._stopwatch.measure(self._encode_start, self._stopwatch.mark(), count)
        self._encode_start = None

    def start_loads(self) -> None:
        """Note that loads begin."""
        if not self._on_cuda:
            self._load_start = self._stopwatch.mark()

    def end_loads(self, load_stream: AbstractContextManager[object]) -> None:
        """Note that all copies of the step's loads are queued on the load stream."""
        with load_stream:
            self._loaded = self._stopwatch.mark()

    def await_loads(self, number: int) -> None:
        """Note that the current stream is about to wait for `number` loads."""
        # On the CPU the copies are complete when they are queued, so all their time is exposed.
        start = self._stopwatch.mark() if self._on_cuda else self._load_start

        def count(exposed_ms: float) -> None:
            self._counts.add("loads_hidden" if exposed_ms <= HIDDEN_MS else "loads_exposed", number)
            self._counts.add("load_exposed_seconds", max(exposed_ms, 0.0) / 1e3)

        self._stopwatch.measure(start, self._loaded, count)

    def start_host_reads(self) -> None:
        """Note that the current stream is about to read rows of the host tier."""
        self._reads_start = self._stopwatch.mark()

    def stop_host_reads(self, number: int, overlap: str) -> None:
        """Note that the reads of `number` entries are queued: `overlap` is "placed" or "exposed"."""

        def count(exposed_ms: float) -> None:
            self._counts.add(f"loads_{overlap}", number)
            self._counts.add("load_exposed_seconds", exposed_ms / 1e3)

        self._stopwatch.measure(self._reads_start, self._stopwatch.mark(), count)

    def collect(self) -> None:
        """Add the times whose marks are complete."""
        self._encode_start = None
        self._stopwatch.collect()
