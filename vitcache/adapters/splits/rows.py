"""`rows_of`: item i is index i of the first dimension of several tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import Split, check_total


def rows_of(*names: str) -> Split:
    """Return a split for calls in which item i is index i of the pixels and of the tensors `names`.

    Gemma 4 has such calls: `pixel_values` is `(images, patches, values)`, and `image_position_ids` is
    `(images, patches, 2)`. The processors pad all images to one number of patches, which other images do not
    change. So the padding is part of an item. An argument that is None is not.
    """

    def split_by_rows(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        pixel_name, pixels = next(iter(arguments.items()))
        rows = {pixel_name: pixels}
        rows |= {name: value for name in names if isinstance(value := arguments.get(name), Tensor)}
        for name, value in rows.items():
            check_total(name, len(value), "rows", pixel_name, len(pixels))
        return [{name: value[item : item + 1] for name, value in rows.items()} for item in range(len(pixels))]

    return split_by_rows
