"""`ByteFingerprint`: a change of any byte is found by the N-th check, and no other write raises an alarm."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from byte_scene import (
    UNSEEN_WRITES,
    Weights,
    checks_until_found,
    odd_weights,
    own_bytes,
    storage_bytes,
    watch,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitcache.adapters.changes import byte_fingerprint
from vitcache.adapters.changes.host_copy import HostCopy

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.complex64]
DTYPES += [torch.float8_e4m3fn, torch.int16]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor of any dtype and layout, within a storage of random bytes."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    total, offset = max(1, torch.Size(shape).numel()), draw(st.integers(0, 5))
    storage = torch.randint(0, 2, ((total + offset) * dtype.itemsize,), dtype=torch.uint8)
    tensor = storage.view(dtype)[offset:][: torch.Size(shape).numel()].view(shape)
    for dim in range(tensor.dim()):
        step = draw(st.integers(1, 3))
        tensor = tensor[(slice(None),) * dim + (slice(draw(st.integers(0, 1)), None, step),)]
    if tensor.dim() > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, -1)
    return tensor.unsqueeze(0).expand(3, *tensor.shape) if draw(st.booleans()) else tensor


@settings(max_examples=300, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=3), st.integers(1, 6), st.data())
def test_check_finds_random_writes_within_n_checks_if_they_touch_a_weight(
    weights: list[Tensor], calls: int, data: st.DataObject
) -> None:
    names = [f"weight{number}" for number in range(len(weights))]
    fingerprint, owner = watch(calls, Weights(**dict(zip(names, weights, strict=True))))
    for _ in range(data.draw(st.integers(0, calls))):
        fingerprint.check(owner)
    assert owner.changed == []
    changed = set()
    for _ in range(data.draw(st.integers(1, 4))):
        which = data.draw(st.integers(0, len(weights) - 1))
        place = data.draw(st.integers(0, len(storage_bytes(weights[which])) - 1))
        bit = data.draw(st.integers(0, 7))
        storage_bytes(weights[which])[place] ^= 1 << bit
        changed ^= {(which, place, bit)}
    hit = {names[which] for which, place, _ in changed if own_bytes(weights[which])[place]}
    found = checks_until_found(fingerprint, owner, calls)
    assert (found is not None) == bool(hit)
    assert set(owner.changed) <= hit
    assert checks_until_found(fingerprint, owner, 2 * calls) is None


@pytest.mark.parametrize("calls", [1, 2, 5, 100])
def test_check_finds_a_change_of_each_byte(calls: int) -> None:
    model = odd_weights()
    fingerprint, owner = watch(calls, model)
    for name, weight in model.named_buffers():
        memory = storage_bytes(weight)
        for place in own_bytes(weight).nonzero()[0]:
            owner.changed.clear()
            memory[place] ^= 1 << (place % 8)
            assert checks_until_found(fingerprint, owner, calls) is not None
            assert owner.changed == [name]
    assert len(owner.warnings) == 1
    assert "the bytes of matrix changed" in owner.warnings[0]


@pytest.mark.parametrize("write", UNSEEN_WRITES)
@pytest.mark.parametrize("size", [6, 150_000])
def test_check_finds_the_write(write: Callable[[Tensor], None], size: int) -> None:
    model = Weights(first=torch.randn(9), weight=torch.randn(size), last=torch.randn(9))
    fingerprint, owner = watch(3, model)
    write(model.weight)
    assert checks_until_found(fingerprint, owner, 3) is not None
    assert owner.changed == ["weight"]


def test_check_tied_weights_are_found_under_their_first_name_alone() -> None:
    first = torch.randn(4, 4)
    fingerprint, owner = watch(4, Weights(first=first, tied=first, other=torch.randn(3)))
    first.data[2, 2] += 1
    assert checks_until_found(fingerprint, owner, 4) is not None
    assert checks_until_found(fingerprint, owner, 8) is None
    assert owner.changed == ["first"]


def test_check_reads_the_inner_tensors_of_a_tensor_subclass() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    inner = torch.randn(3), torch.randn(3)
    fingerprint, owner = watch(2, Weights(weight=TwoTensor(*inner)))
    for tensor, name in zip(inner, ("a", "b"), strict=True):
        tensor.data.add_(1)
        assert checks_until_found(fingerprint, owner, 2) is not None
        assert owner.changed.pop() == f"weight.{name}"


def test_check_ignores_weights_without_memory_of_their_own_and_the_language_model() -> None:
    model = Weights(
        offloaded=torch.ones(3, device="meta"),
        sparse=torch.eye(3).to_sparse(),
        released=torch.ones(3),
        weight=torch.ones(3),
    )
    model.released.untyped_storage().resize_(0)
    model.language_model = Weights(weight=torch.ones(3))
    fingerprint, owner = watch(2, model)
    model.language_model.weight.add_(1)
    assert checks_until_found(fingerprint, owner, 6) is None
    assert owner.num_namespaces == 0
    model.weight.data.add_(1)
    assert checks_until_found(fingerprint, owner, 2) is not None


def test_check_of_a_model_without_weights_finds_nothing() -> None:
    fingerprint, owner = watch(3, nn.Module())
    assert checks_until_found(fingerprint, owner, 6) is None


def test_check_with_a_huge_n_reads_one_block_per_check() -> None:
    model = odd_weights()
    fingerprint, owner = watch(10**15, model)
    model.number.data.add_(1)
    num_weights = sum(weight.numel() > 0 for weight in model.buffers())
    assert checks_until_found(fingerprint, owner, num_weights) is not None


def test_check_after_reset_accepts_the_new_bytes_and_begins_a_namespace() -> None:
    model = odd_weights()
    fingerprint, owner = watch(2, model)
    model.matrix.data.add_(1)
    fingerprint.reset()
    assert checks_until_found(fingerprint, owner, 6) is None
    assert owner.num_namespaces == 1


def test_check_after_a_finding_begins_its_namespace_behind_the_new_checksums() -> None:
    model = odd_weights()
    fingerprint, owner = watch(1, model)
    begin = owner.begin_namespace

    def begin_and_write() -> None:
        begin()
        if owner.num_namespaces == 2:  # `forget` began the first one
            model.matrix.data.add_(1)  # a write during an encode in the last namespace

    owner.begin_namespace = begin_and_write  # type: ignore[method-assign]
    model.matrix.data.add_(1)
    fingerprint.check(owner)
    fingerprint.check(owner)
    assert owner.changed == ["matrix", "matrix"]


@pytest.mark.parametrize("change", ["module", "tensor", "data", "resize"])
def test_fingerprint_keeps_no_replaced_weight_and_then_reads_the_new_one(change: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fingerprint, owner = watch(2, model)
    memory = weakref.ref(model[0].weight.untyped_storage())
    if change == "module":
        model[0] = nn.Linear(2, 2)
    elif change == "tensor":
        model[0].weight = nn.Parameter(torch.ones(2, 2))
    elif change == "data":
        model[0].weight.data = torch.ones(2, 2)
    else:
        model[0].weight.untyped_storage().resize_(0)
    gc.collect()
    assert (memory() is None) == (change != "resize")
    assert checks_until_found(fingerprint, owner, 4) is None
    assert owner.num_namespaces == 1
    model[0].bias.data.add_(1)
    assert checks_until_found(fingerprint, owner, 2) is not None


def test_fingerprint_leaves_tensors_swappable() -> None:
    model = nn.Linear(2, 2)
    fingerprint, owner = watch(1, model)
    torch.utils.swap_tensors(model.weight, nn.Parameter(torch.ones(2, 2)))
    assert checks_until_found(fingerprint, owner, 2) is None
    assert owner.num_namespaces == 1


def test_check_under_graph_capture_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = odd_weights()
    fingerprint, owner = watch(1, model)
    model.matrix.data.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(byte_fingerprint, "is_capturing", lambda device: True)
        assert checks_until_found(fingerprint, owner, 3) is None
    assert checks_until_found(fingerprint, owner, 1) == 1


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("earlier", [torch.inference_mode, torch.enable_grad])
def test_check_works_in_each_mode(mode: Any, earlier: Any) -> None:
    with earlier():
        model = nn.Linear(3, 3)
        fingerprint, owner = watch(2, model)
    with mode():
        assert checks_until_found(fingerprint, owner, 4) is None
    write = model.bias.untyped_storage()
    write[0] = write[0] ^ 1
    with mode():
        assert checks_until_found(fingerprint, owner, 2) is not None
        assert checks_until_found(fingerprint, owner, 4) is None


def test_check_of_another_thread_during_new_checksums_returns_and_its_namespace_ends() -> None:
    model = odd_weights()
    is_attached, is_taking, may_finish = (threading.Event() for _ in range(3))

    class SlowCopy(HostCopy):
        def __init__(self, source: Tensor) -> None:
            super().__init__(source)
            if is_attached.is_set():
                is_taking.set()
                assert may_finish.wait(30)

    fingerprint, owner = watch(2, model, copies=lambda device: SlowCopy)
    is_attached.set()
    fingerprint.reset()
    thread = threading.Thread(target=fingerprint.check, args=(owner,))
    thread.start()
    assert is_taking.wait(30)
    fingerprint.check(owner)
    before = owner.num_namespaces
    may_finish.set()
    thread.join()
    assert (before, owner.num_namespaces) == (0, 1)


@pytest.mark.parametrize(("calls", "error"), [(0, ValueError), (True, TypeError), (1.0, TypeError)])
def test_fingerprint_wrong_calls_raise(calls: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="calls"):
        watch(calls, nn.Linear(2, 2))
