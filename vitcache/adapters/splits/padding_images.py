"""`find_images`: the images of a call that are not padding, as the stock methods of Idefics decide."""

from __future__ import annotations

import torch
from torch import Tensor

# The smallest positive float16. The stock methods cast pixels to the dtype of the model before they compare
# them with zero. A larger pixel is not zero in any of these dtypes.
_NEVER_ZERO = 2.0**-24


def find_images(pixels: Tensor) -> list[tuple[int, int]] | None:
    """Return prompt and index of the images that are not padding: the stock method drops images of zeros.

    The first pixel of an image is seldom 0. Only if it is, the whole image is read. None: the dtype of the
    model decides whether an image is zero.
    """
    found = []
    for prompt, corners in enumerate(pixels[:, :, 0, 0, 0].tolist()):
        for image, corner in enumerate(corners):
            is_image = _is_not_zero(corner, corner)
            if not is_image:
                is_image = _is_not_zero(*torch.stack(pixels[prompt, image].aminmax()).tolist())
                if is_image is None:
                    return None
            if is_image:
                found.append((prompt, image))
    return found


def _is_not_zero(low: float, high: float) -> bool | None:
    """Whether pixels from `low` to `high` are not all 0 after a cast. None: this depends on the dtype."""
    if low == high == 0:
        return False
    return None if low >= -_NEVER_ZERO and high <= _NEVER_ZERO else True  # NaN is not 0
