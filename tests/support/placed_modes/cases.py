"""`each_case`: parameters of a test for each family, dtype and mode, and `scene_of`: the models of a case."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import pytest
import torch
from tiny_zoo import ZOO

from placed_modes.modes import is_mode_of
from placed_modes.scene import Scene


def each_case(
    families: Iterable[str], modes: Iterable[str], dtypes: tuple[torch.dtype, ...]
) -> pytest.MarkDecorator:
    """Run a test with the arguments `family`, `dtype` and `mode` for each mode of each family."""
    cases = [
        pytest.param(family, dtype, mode, id=f"{family}-{str(dtype).removeprefix('torch.')}-{mode}")
        for family, dtype, mode in itertools.product(families, dtypes, modes)
        if is_mode_of(ZOO[family], mode)
    ]
    return pytest.mark.parametrize(("family", "dtype", "mode"), cases)


@functools.lru_cache(maxsize=1)
def scene_of(family: str, dtype: torch.dtype) -> Scene:
    """The models of a family and dtype. All modes of `each_case` get the same ones."""
    torch._dynamo.reset()  # there is a limit on the graphs of one function
    return Scene(family, dtype)
