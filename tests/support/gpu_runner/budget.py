"""The seconds of one run: which part may still start, and when a running part is ended."""

import time
from collections.abc import Callable

LEAST_S = 5.0  # with less time before its end, a part only starts and does nothing useful
SUMMARY_S = 1.0  # for the test report and the summary, after the last part
LEAST_GRACE_S, MOST_GRACE_S, GRACE_SHARE = 1.0, 8.0, 1 / 15


class Budget:
    """Counts the seconds of a run since its start.

    Parameters
    ----------
    seconds
        Seconds of the whole run. None: no limit.
    started
        Value of `clock` at the start of the run. None: now.
    clock
        Returns seconds; tests pass one of their own.
    """

    def __init__(
        self,
        seconds: float | None,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.clock = clock
        self.started = clock() if started is None else started
        # A part is interrupted this long before it is killed, so that it can write its results.
        self.grace_s = min(MOST_GRACE_S, max(LEAST_GRACE_S, (seconds or 0.0) * GRACE_SHARE))

    @property
    def used_s(self) -> float:
        """Seconds since the start of the run."""
        return self.clock() - self.started

    @property
    def left_s(self) -> float:
        """Seconds until a running part is interrupted; infinite without a limit."""
        if self.seconds is None:
            return float("inf")
        return self.seconds - SUMMARY_S - self.grace_s - self.used_s

    def allows(self, least_s: float = LEAST_S) -> bool:
        """Whether a part that needs at least this long may start."""
        return self.left_s >= least_s


def parse_budget(text: str) -> float | None:
    """Return the seconds of BUDGET, or None if it is empty.

    Raises
    ------
    ValueError
        If the text is not a number of seconds above 0.
    """
    if not text.strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"BUDGET must be a number of seconds above 0, got {text!r}")
    return seconds
