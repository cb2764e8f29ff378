"""Where cases run, and the cases of the placement benches.

The class of a case may have the attribute `RUNS_ON`, `CPU` or `GPU`: its claim is about that kind of device.
Such a case runs only there. But at smoke size without a GPU, every case runs, only to show that it works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

CPU, GPU = "cpu", "cuda"  # types of torch devices

_Case = TypeVar("_Case")


def cases_for(cases: Sequence[_Case], size: str, device_type: str) -> list[_Case]:
    """Return the cases of a size that run on a device of this type, in order."""
    if size == "smoke" and device_type == CPU:
        return list(cases)
    return [case for case in cases if getattr(case, "RUNS_ON", device_type) == device_type]


@dataclass(frozen=True)
class PlacementCase:
    """One prompt with `items` images of `rows` rows each, and `gap` text tokens between two images.

    A row has ``hidden * (1 + levels)`` elements, where `levels` is the number of deepstack levels.
    """

    name: str
    items: int
    rows: int
    hidden: int
    levels: int = 0
    gap: int = 16
    vocabulary: int = 151_936

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt, which has 32 text tokens before its first image."""
        return self.items * (self.rows + self.gap) + 64

    @property
    def moved_elements(self) -> int:
        """Elements that a build of ``inputs_embeds`` must read and write.

        It reads the rows of the images, and a row of `hidden` elements for each text token. It writes
        `hidden` elements for each token, and its deepstack rows: those of text tokens are zeroed, not read.
        """
        image_tokens, levels = self.items * self.rows, 1 + self.levels
        read = image_tokens * levels + (self.num_tokens - image_tokens)
        return (read + self.num_tokens * levels) * self.hidden

    @property
    def is_large(self) -> bool:
        """Whether the time to move the bytes is much longer than the time to launch kernels."""
        return self.items * self.rows >= 7_000

    @property
    def starts(self) -> list[int]:
        """The first token of each image."""
        return [32 + item * (self.rows + self.gap) for item in range(self.items)]


PLACEMENT_CASES = {
    "full": [
        PlacementCase("1x880", 1, 880, 4096),
        PlacementCase("9x880", 9, 880, 4096),
        PlacementCase("32x880", 32, 880, 4096),
        PlacementCase("8x3600", 8, 3600, 5120),
        PlacementCase("64x256", 64, 256, 3840, vocabulary=262_208),
        PlacementCase("512x64", 512, 64, 3584),
        PlacementCase("9x880-deepstack3", 9, 880, 4096, levels=3),
    ],
    "smoke": [
        PlacementCase("3x7", 3, 7, 64, gap=2, vocabulary=97),
        PlacementCase("3x7-deepstack2", 3, 7, 64, levels=2, gap=2, vocabulary=97),
    ],
}
