"""`TransferTime`: how long a tier needs to return rows, from the fetches that were measured."""

from __future__ import annotations

# Weight of each measurement after one more. About three count, so ten are enough to follow a network that
# became much faster.
_KEEP = 0.7

# Weight of a measurement of 0 bytes in 0 seconds, which is always among the measurements. If all of them are
# of about one size, they cannot tell the latency: the line then begins at 0.
_ORIGIN = 0.1

# A measurement counts as at most this multiple of the expected time: one call that hung must not count long.
_MOST = 4.0

_LEAST_S_PER_BYTE = 1e-13
_MOST_S = 1e9


class TransferTime:
    """Expects ``latency + bytes / bandwidth`` seconds: a line through the last measurements.

    Bytes divided by seconds alone would be wrong by a factor: with entries of 0.5 MB, 2 ms of latency and
    1 GB/s it would say 0.2 GB/s, and refuse larger entries that are worth it. If the line is too low, entries
    are fetched and measured. If it is too high, nothing is fetched, and `WorthRule` measures now and then.

    The first measurement is dropped: the first fetch of a process connects to the nodes of a store. Over
    loopback it took up to three times as long as the next one, and entries would be refused because of it.

    One thread calls `note`. Any thread reads.

    Attributes
    ----------
    line
        The latency in seconds, and the seconds of a byte; None before the second measurement.
    """

    def __init__(self) -> None:
        self.line: tuple[float, float] | None = None
        self._is_first = True
        self._weight = self._bytes = self._seconds = self._squares = self._products = 0.0

    def note(self, num_bytes: int, seconds: float) -> None:
        """Note that a call returned `num_bytes` bytes, at least 1, in `seconds`."""
        if self._is_first:
            self._is_first = False
            return
        size = float(num_bytes)
        expected = self.expected_s(num_bytes)
        seconds = min(max(seconds, size * _LEAST_S_PER_BYTE), _MOST_S)
        if expected is not None:
            seconds = min(seconds, _MOST * expected)
        self._weight = _KEEP * self._weight + 1
        self._bytes = _KEEP * self._bytes + size
        self._seconds = _KEEP * self._seconds + seconds
        self._squares = _KEEP * self._squares + size * size
        self._products = _KEEP * self._products + size * seconds
        weight = self._weight + _ORIGIN
        spread = weight * self._squares - self._bytes * self._bytes
        average = self._seconds / self._bytes
        slope = (weight * self._products - self._bytes * self._seconds) / spread if spread > 0 else average
        slope = min(max(slope, _LEAST_S_PER_BYTE), average)
        self.line = max(self._seconds - slope * self._bytes, 0.0) / weight, slope

    def expected_s(self, num_bytes: int) -> float | None:
        """Return the expected seconds of a fetch of `num_bytes` bytes; None before the second measurement."""
        line = self.line
        return None if line is None else line[0] + line[1] * num_bytes

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth; 0.0 before the second measurement."""
        return 0.0 if self.line is None else 1 / self.line[1]

    @property
    def latency_s(self) -> float:
        """The latency in seconds; 0.0 before the second measurement."""
        return 0.0 if self.line is None else self.line[0]
