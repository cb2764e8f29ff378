"""`split_by_two_resolutions`: each image twice, in two tensors of different resolution."""

from __future__ import annotations

from itertools import islice
from typing import Any

from vitcache.adapters.splits.call_parts import check_total


def split_by_two_resolutions(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Split two tensors of pixels by their first dimensions: index i of both is image i."""
    (low_name, low), (high_name, high) = islice(arguments.items(), 2)
    check_total(high_name, len(high), "images", low_name, len(low))
    return [
        {low_name: low[image : image + 1], high_name: high[image : image + 1]} for image in range(len(low))
    ]
