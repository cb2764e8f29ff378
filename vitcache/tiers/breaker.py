"""`Breaker`: stops the use of a tier that is late or fails, and tries it again later."""

from __future__ import annotations

from collections.abc import Callable

from vitcache.device.locks import new_lock

FIRST_BACK_OFF_S = 1.0
LONGEST_BACK_OFF_S = 30.0


class Breaker:
    """Whether a tier may be asked now. Any thread may call any method; none of them waits.

    It is closed at first, and opens at the first failure. It stays open while a late call runs, and for a
    back-off of 1 s, which doubles with each failed probe, up to 30 s. Then it admits one fetch as a probe. If
    the probe succeeds in time, the breaker closes.

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
        self._is_probing = False

    @property
    def is_ripe(self) -> bool:
        """Whether it is closed, or open and the back-off is over."""
        return not self.is_open or (self._num_late == 0 and self._clock() >= self._until)

    @property
    def may_admit(self) -> bool:
        """Whether `admit` would admit a fetch now."""
        return not self.is_open or (not self._is_probing and self.is_ripe)

    def admit(self) -> bool | None:
        """Whether a fetch may be queued now. None: it may, as the probe, and must end it."""
        if not self.is_open:
            return True
        with self._lock:
            if not self.may_admit:
                return False
            self._is_probing = True
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
                self._is_probing = False
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
        """End the probe: close, or let the next fetch be the probe because this one did not ask the tier."""
        with self._lock:
            self._is_probing = False
            if succeeded:
                self.is_open = False
