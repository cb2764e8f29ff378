"""A plug-in of the tests: the encoder of a scheduler treats images of one colour in an odd way.

A client chooses the failure by the image that it sends: the encoder raises for a black image, returns a row
too few for a white one, and waits for a file at a grey one. SGLang loads it as the plug-ins of `probe`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

SCHEDULER = "sglang.srt.managers.scheduler"
BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (128, 128, 128)
SIDE = 128
# The folder of the files `is_held`, which the encoder makes when it begins to wait, and `may_continue`.
HOLD = "ODD_IMAGES_HOLD"
HOLD_LIMIT_S = 60
POLL_S = 0.02


def of_colour(colour: tuple[int, int, int], side: int = SIDE) -> Image.Image:
    """An image whose pixels all have this colour."""
    return Image.new("RGB", (side, side), colour)


def odd_images() -> None:
    """Change the encoder of the model when the scheduler begins its loop."""
    module = sys.modules.get(SCHEDULER)
    if module is None:
        return
    run = module.Scheduler.run_event_loop

    def run_event_loop(scheduler: Any) -> Any:
        model = scheduler.tp_worker.model_runner.model
        encode = model.get_image_feature

        def get_image_feature(items: list[Any]) -> Any:
            rows = encode(items)
            for item in items:
                low, high = item.feature.min(), item.feature.max()
                if low != high:
                    continue
                if high < -0.5:
                    raise ValueError("the image is black")
                if high > 0.5:
                    rows = rows[:-1]
                else:
                    hold(Path(os.environ[HOLD]))
            return rows

        model.get_image_feature = get_image_feature
        return run(scheduler)

    module.Scheduler.run_event_loop = run_event_loop


def hold(folder: Path) -> None:
    """Wait until the test lets the encoder continue."""
    (folder / "is_held").touch()
    end = time.monotonic() + HOLD_LIMIT_S
    while not (folder / "may_continue").exists():
        if time.monotonic() > end:
            raise TimeoutError(f"no file {folder / 'may_continue'} within {HOLD_LIMIT_S} s")
        time.sleep(POLL_S)
