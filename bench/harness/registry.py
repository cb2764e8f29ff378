"""The cases that benches measure, as data: the design's shapes, and small ones that run anywhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlacementCase:
    """`items` images of `rows` rows of `hidden` elements in one prompt, `gap` text tokens apart.

    With `levels` deepstack levels a row has ``hidden * (1 + levels)`` elements.
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
        """Tokens of the prompt, with 32 text tokens at both ends."""
        return self.items * (self.rows + self.gap) + 64

    @property
    def is_large(self) -> bool:
        """Whether launches and look-ups are small beside the bytes."""
        return self.items * self.rows >= 7_000

    @property
    def starts(self) -> list[int]:
        """First token of each image."""
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
