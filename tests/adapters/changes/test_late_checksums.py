"""`ByteFingerprint` with checksums that a GPU computes later: nothing waits, and N checks still suffice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byte_scene import checks_until_found, odd_weights, own_bytes, storage_bytes, watch
from torch import Tensor

from vitcache.adapters.changes.host_copy import HostCopy


class LateCopy(HostCopy):
    """The copy from a device that works as late as possible: when `finish` is called, or the host waits."""

    is_late = True
    started: list[LateCopy] = []  # noqa: RUF012

    def __init__(self, source: Tensor) -> None:
        super().__init__(source)
        self.source: Tensor | None = None

    def start(self, source: Tensor) -> None:
        assert self.source is None
        self.source = source
        self.started.append(self)

    def is_complete(self) -> bool:
        return self.source is None

    def wait(self) -> None:
        assert self.source is not None
        self.value.copy_(self.source)  # in place, as a copy to pinned memory
        self.source = None

    @classmethod
    def finish(cls) -> None:
        for copy in cls.started:
            if copy.source is not None:
                copy.wait()
        cls.started.clear()


@pytest.fixture
def late() -> dict[str, Any]:
    LateCopy.started.clear()
    return {"copies": lambda device: LateCopy}


@pytest.mark.parametrize("calls", [2, 3, 7])
def test_check_device_that_keeps_up_finds_each_byte_by_the_nth_check(
    late: dict[str, Any], calls: int
) -> None:
    model = odd_weights()
    fingerprint, owner = watch(calls, model, **late)
    most = 0
    for name, weight in model.named_buffers():
        for place in own_bytes(weight).nonzero()[0]:
            owner.changed.clear()
            storage_bytes(weight)[place] ^= 1
            number = 0
            while not owner.changed:
                number += 1
                fingerprint.check(owner)
                LateCopy.finish()
            most = max(most, number)
            assert owner.changed == [name]
    assert most <= calls


def test_check_device_that_lags_never_waits_and_finds_the_change_later(late: dict[str, Any]) -> None:
    model = odd_weights()
    fingerprint, owner = watch(3, model, **late)
    model.matrix.data.add_(1)
    assert checks_until_found(fingerprint, owner, 10) is None
    assert len(LateCopy.started) == 2  # one per part: the next round waits for the device
    LateCopy.finish()
    assert checks_until_found(fingerprint, owner, 1) == 1


def test_check_with_n_1_waits_for_the_device(late: dict[str, Any]) -> None:
    model = odd_weights()
    fingerprint, owner = watch(1, model, **late)
    model.number.data.add_(1)
    assert checks_until_found(fingerprint, owner, 1) == 1


def test_check_after_checksums_taken_in_inference_mode_compares_later_copies(late: dict[str, Any]) -> None:
    model = odd_weights()
    with torch.inference_mode():
        fingerprint, owner = watch(2, model, **late)
    for _ in range(4):
        fingerprint.check(owner)
        LateCopy.finish()
    assert owner.changed == []
    model.matrix.data.add_(1)
    fingerprint.check(owner)
    LateCopy.finish()
    assert checks_until_found(fingerprint, owner, 1) == 1
