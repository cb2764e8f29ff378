"""`TowerMeter`: counts the images and pixels at a vision tower."""

from __future__ import annotations

from typing import Any

from vitcache.adapters.attachable import find_attachable
from vitcache.demo.conversation import Prompt


class TowerMeter:
    """Counts the images that enter the vision tower of `model`, and the elements of their pixels."""

    def __init__(self, model: Any) -> None:
        self._images = 0
        self._elements = 0
        owner, family = find_attachable(model, None)
        getattr(owner, family.tower).register_forward_pre_hook(self._count, with_kwargs=True)

    def take(self, prompt: Prompt, encoded: int) -> int:
        """Return the bytes of the pixels that entered the tower since the last call, in the prompt's dtype.

        Raises
        ------
        RuntimeError
            If the number of images that entered the tower is not `encoded`.
        """
        images, elements = self._images, self._elements
        self._images = self._elements = 0
        if images != encoded:
            raise RuntimeError(
                f"expected {encoded} images in the vision tower, as counted by the caller, got {images}"
            )
        return elements * prompt.pixel_values.itemsize

    def _count(self, tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grids = kwargs.get("grid_thw")
        self._images += 1 if grids is None else len(grids)  # without grids, a call encodes one image
        self._elements += next(iter((*args, *kwargs.values()))).numel()
