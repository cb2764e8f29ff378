"""The cases of the placement benches: the design's shapes, and small shapes that run on every machine."""

from __future__ import annotations

from dataclasses import dataclass


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
