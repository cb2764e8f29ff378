"""`Breaker`: stops the use of a tier that is late or fails, and tries it again later."""

from __future__ import annotations

from collections.abc import Callable

from vitcache.device.locks import new_lock

FIRST_BACK_OFF_S = 1.0
LONGEST_BACK_OFF_S = 30.0


class Breaker:
    """Whether a tier may be asked now. Any thread may call any method; none of them waits.

    It is closed at first, and opens at the first failure. It stays open while a late call runs, and for a
    back-off of 1 s, which doubles with each failed probe, up to 30 s. Then it admits one fetch or one store
    as a probe. If the probe succeeds in time, the breaker closes. After 30 s without a result, the next call
    is the probe: an interrupt may have lost the first one.

    Parameters
    ----------
    clock
        Returns the time in seconds.

    Attributes
    ----------
    is_open
        Whether it is open.
    openings
        How many times it has opened.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.is_open = False
        self.openings = 0
        self._clock = clock
        self._lock = new_lock()
        self._back_off_s = FIRST_BACK_OFF_S
        self._until = 0.0
        self._num_late = 0  # late calls that still run
        self._probe_until = float("-inf")

    @property
    def _is_probing(self) -> bool:
        return self._clock() < self._probe_until

    @property
    def is_ripe(self) -> bool:
        """Whether it is closed, or open and the back-off is over."""
        return not self.is_open or (self._num_late == 0 and self._clock() >= self._until)

    @property
    def may_admit(self) -> bool:
        """Whether `admit` would admit a call now."""
        return not self.is_open or (not self._is_probing and self.is_ripe)

    def admit(self) -> bool | None:
        """Whether a fetch or a store may be queued now. None: it may, as the probe, and must end it."""
        if not self.is_open:
            return True
        with self._lock:
            if not self.may_admit:
                return False
            self._probe_until = self._clock() + LONGEST_BACK_OFF_S
            return None

    def fail(self, is_probe: bool = False) -> None:
        """Open, because a call of the tier failed. While it is open, begin the back-off again."""
        with self._lock:
            if not self.is_open:
                self.is_open = True
                self.openings += 1
                self._back_off_s = FIRST_BACK_OFF_S
            elif is_probe:
                self._back_off_s = min(2 * self._back_off_s, LONGEST_BACK_OFF_S)
            if is_probe:
                self._probe_until = float("-inf")
            self._until = self._clock() + self._back_off_s

    def begin_late(self, is_probe: bool = False) -> None:
        """Open, because a call is late; it counts as running until `end_late`."""
        with self._lock:
            self._num_late += 1
        self.fail(is_probe)

    def end_late(self) -> None:
        """End a late call, and begin the back-off."""
        with self._lock:
            self._num_late -= 1
        self.fail()

    def end_probe(self, succeeded: bool) -> None:
        """End the probe: close, or let the next call be the probe because this one did not ask the tier."""
        with self._lock:
            self._probe_until = float("-inf")
            if succeeded:
                self.is_open = False
