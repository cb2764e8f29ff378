"""Stand-ins for vLLM's fields, for machines without vLLM. tests/engines compares with the real ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


@dataclass
class StandInField:
    """Joins the data of items, and moves it, as vLLM's field of the same name."""

    keep_on_cpu: bool = False
    dim: int = 0

    def reduce_data(self, elems: list[Elem], *, device: Any = None, pin_memory: bool = False) -> Any:
        data = [elem.data for elem in elems]
        joined = self.join(data)
        is_moved = device is not None and not self.keep_on_cpu
        return joined.to(device) if is_moved and isinstance(joined, Tensor) else joined

    def join(self, data: list[Any]) -> Any:
        raise NotImplementedError


class MultiModalBatchedField(StandInField):
    """One more dimension in front, or a list if the shapes differ."""

    def join(self, data: list[Any]) -> Any:
        is_even = len({part.shape for part in data}) == 1
        return torch.stack(data) if is_even else data


class MultiModalFlatField(StandInField):
    """Joined along `dim`."""

    def join(self, data: list[Any]) -> Any:
        return data[0] if len(data) == 1 else torch.cat(data, dim=self.dim)


@dataclass
class Elem:
    """One field of one item."""

    data: Any
    field: StandInField


def make_item(num_rows: int, width: int, seed: int = 0) -> dict[str, Elem]:
    """An image of Qwen's form: `num_rows` patches, and its grid, which stays on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(num_rows, width, generator=generator)
    return {
        "pixel_values": Elem(pixels, MultiModalFlatField()),
        "image_grid_thw": Elem(torch.tensor([1, num_rows, 1]), MultiModalBatchedField(keep_on_cpu=True)),
    }


def can_batch(left: dict[str, Elem], right: dict[str, Elem]) -> bool:
    """As vLLM's rule for items without shared fields."""
    return left.keys() == right.keys()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the modules of vLLM that `FeatureBatches` imports in place, until the test ends."""
    for path, names in (
        ("vllm", {}),
        ("vllm.multimodal", {}),
        ("vllm.multimodal.utils", {"_can_batch_mm_items": can_batch}),
        ("vllm.utils", {}),
        ("vllm.utils.torch_utils", {"PIN_MEMORY": torch.cuda.is_available()}),
    ):
        module = ModuleType(path)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, path, module)
