"""`Scene`: a stock model that encodes each item alone, and an equal model with vitcache attached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_family import randomize
from tiny_zoo import ZOO
from torch import Tensor

from placed_modes.each_alone import encode_each_alone
from placed_modes.modes import MODES
from placed_modes.side import Side
from placed_modes.stock_failures import stock_failure
from placed_modes.unplaced import expected_reasons
from vitcache.adapters.transformers import attach


class Scene:
    """Equal models of a family: the stock model, one that encodes each item alone, and an attached one."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        zoo = ZOO[name]
        if not zoo.exists:
            pytest.skip(f"this version of transformers lacks {zoo.lacks}")
        plain, alone, attached, assistant = (zoo.model(dtype) for _ in range(4))
        randomize(assistant)  # with the weights that follow those of the other models
        encode_each_alone(zoo, alone, plain)
        self.plain, self.alone, self.attached = (
            Side(zoo, model, plain, assistant, dtype) for model in (plain, alone, attached)
        )
        self.attachment = attach(attached)

    @torch.no_grad()
    def check(self, name: str) -> None:
        """Assert that the attached model gives the bits of the stock model that encodes each item alone.

        It is called with no item in the cache, with one, and with all. In each call the rows are placed, or
        not for the reason in `UNPLACED`. If the stock model fails in this mode, assert that the three models
        raise the same exception type.
        """
        mode = MODES[name]
        if error := stock_failure(self.plain.zoo.name, self.plain.dtype, name):
            for side in (self.plain, self.alone, self.attached):
                with pytest.raises(Exception) as caught:  # noqa: PT011
                    mode(side)
                assert type(caught.value) is error
            return
        expected = mode(self.alone)
        for state, prepare in self._cache_states().items():
            prepare()
            before = self.attachment.stats()
            assert _differing(mode(self.attached), expected) == [], state
            after = self.attachment.stats()
            reasons = set(Counter(after.unplaced_calls) - Counter(before.unplaced_calls))
            is_placed = after.placed_calls > before.placed_calls
            unplaced = expected_reasons(self.plain.zoo.name, name)
            assert (is_placed, reasons) == (unplaced is None, unplaced or set()), state
            assert after.bypassed == 0
        assert after.encoded == before.encoded

    def _cache_states(self) -> dict[str, Callable[[], Any]]:
        """Functions that prepare the cache for a call, by the items that it then has."""
        cache, side = self.attachment.cache, self.attached
        return {
            "none": cache.clear,
            "one": lambda: (cache.clear(), side.logits(side.images(0))),
            "all": lambda: None,
        }


def _differing(tensors: list[Tensor], expected: list[Tensor]) -> list[int]:
    """The numbers of the tensors that differ from those expected."""
    pairs = zip(tensors, expected, strict=True)
    return [number for number, (ours, theirs) in enumerate(pairs) if not torch.equal(ours, theirs)]
