"""``python -m gpu_runner``: run the parts of `make gpu`. tests/gpu/run.sh calls it."""

import os
import signal
import sys
from types import FrameType

from gpu_runner.budget import Budget
from gpu_runner.facts import NotReady, OutOfTime
from gpu_runner.gpu_run import GpuRun
from gpu_runner.settings import Settings

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(python: str) -> int:
    """Run; return the exit code: 0 if no part failed, even if the budget ended the run."""
    # With a handler, the commands of the parts start with the default of both signals, even if a shell has
    # started this process in the background, where it ignores SIGINT.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        budget = Budget(None)  # the clock starts before anything else
        settings = Settings.read(os.environ, python)
        budget = Budget(settings.budget_s, budget.started)
        return GpuRun(settings, budget).run()
    except OutOfTime as error:
        print(
            f"make gpu: BUDGET={budget.seconds:g} ended the run before its first part: {error}",
            file=sys.stderr,
        )
        return 0
    except (ValueError, NotReady) as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make gpu: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
