"""Arrays of every kind have the bytes and the name of their logical content, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from late_copies import LateCopies
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vitcache import content_key
from vitcache.keys import arrays
from vitcache.keys.arrays import BLOCK_BYTES, array_blocks, hashed_array
from vitcache.keys.parts import frame, part_keys
from vitcache.keys.readback import read_back

BASE = np.arange(12.0, dtype=np.float32).reshape(3, 4)

# Types of one kind and size, by the name of their content. NumPy's own names of them differ.
TYPES = {
    "int8": (np.byte, "b", "<i1", torch.int8),
    "int16": (np.short, "h", ">i2", torch.int16),
    "int32": (np.intc, "i", ">i4", torch.int32),
    "int64": (np.longlong, np.int64, "q", "l" if np.dtype("l").itemsize == 8 else "q", ">i8", torch.int64),
    "uint8": (np.ubyte, "B", torch.uint8),
    "uint16": (np.ushort, "H", ">u2", torch.uint16),
    "uint32": (np.uintc, "I", ">u4", torch.uint32),
    "uint64": (np.ulonglong, np.uint64, "Q", ">u8", torch.uint64),
    "bool": (np.bool_, "?", bool, torch.bool),
    "float16": (np.half, "e", ">f2", torch.float16),
    "float32": (np.single, "f", ">f4", torch.float32),
    "float64": (np.double, float, "d", ">f8", torch.float64),
    "complex64": (np.csingle, "F", ">c8", torch.complex64),
    "complex128": (np.cdouble, complex, "D", ">c16", torch.complex128),
}


@pytest.mark.parametrize("name", TYPES)
def test_content_key_of_types_of_one_kind_and_size_is_equal(name: str) -> None:
    values = [[0, 1, 1], [1, 0, 1]]
    found = [
        torch.tensor(values).to(kind) if isinstance(kind, torch.dtype) else np.array(values, kind)
        for kind in TYPES[name]
    ]
    assert {hashed_array(value, "feature").dtype for value in found} == {name}
    assert len({content_key(value) for value in found}) == 1
    scalars = [value[0, 1] for value in found]
    assert len({content_key(b"", extra=[value]) for value in scalars}) == 1


class Plain(Tensor):
    """A subclass that changes nothing."""


class Rows(np.ndarray):
    """A subclass that changes nothing."""


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


# fmt: off
EQUAL: dict[str, Callable[[np.ndarray], Any]] = {
    "read-only": read_only,
    "read-only and big-endian": lambda array: read_only(array.astype(">f4")),
    "Fortran order": np.asfortranarray,
    "subclass of ndarray": lambda array: array.view(Rows),
    "matrix": lambda array: np.asmatrix(array),
    "unaligned": lambda array: np.frombuffer(b"x" + array.tobytes(), np.float32, offset=1).reshape(3, 4),
    "field of a structured array": lambda array: np.rec.fromarrays([array, array > 1], names="a,b")["a"],
    "negative strides": lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
    "tensor": torch.from_numpy,
    "subclass of Tensor": lambda array: torch.from_numpy(array).as_subclass(Plain),
    "requires grad": lambda array: torch.from_numpy(array).requires_grad_() * 1,
    "parameter": lambda array: torch.nn.Parameter(torch.from_numpy(array)),
    "buffer": lambda array: torch.nn.Buffer(torch.from_numpy(array)),
    "inference tensor": lambda array: torch.inference_mode()(torch.from_numpy(array).clone)(),
    "conjugate of a conjugate": lambda array: torch.from_numpy(array + 0j).conj().real,
    "negative view": lambda array: torch.from_numpy(-1j * array).conj().imag,
    "offset in its storage": lambda array: torch.from_numpy(np.concatenate([array, array]))[3:],
}
# fmt: on


@pytest.mark.parametrize("kind", EQUAL)
def test_content_key_of_equal_values_in_another_kind_of_array_is_equal(kind: str) -> None:
    value = EQUAL[kind](BASE.copy())
    assert content_key(value) == content_key(BASE)
    assert content_key([b"", value], extra=value) == content_key([b"", BASE], extra=BASE)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3)], ids=str)
def test_content_key_of_empty_and_0d_arrays_in_any_layout_is_by_shape_and_value(
    shape: tuple[int, ...],
) -> None:
    array = np.full(shape, 3, np.int32)
    key = content_key(array)
    for equal in (
        array.astype(">i4"),
        read_only(array),
        array.T.copy().T,
        torch.from_numpy(array),
        np.broadcast_to(np.int32(3), shape),
        torch.tensor(3, dtype=torch.int32).expand(shape),
    ):
        assert content_key(equal) == key
    if shape == ():
        assert content_key(np.int32(3)) == key


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, ">f4,>i2"),
        np.zeros(2, "<f4,<i2"),
        np.zeros(2, "V4"),
        np.zeros((), "O"),
        np.zeros(2, "S4"),
        np.zeros(2, "m8[s]"),
        np.longdouble(1),
        np.clongdouble(1),
        np.zeros(2, np.longdouble),
        np.bytes_(b"a"),
    ],
    ids=lambda value: str(value.dtype),
)
def test_content_key_of_a_dtype_without_one_meaning_is_a_type_error(value: Any) -> None:
    for call in (lambda: content_key([value]), lambda: content_key(b"", extra={"a": value})):
        with pytest.raises(
            TypeError, match=r"^(feature\[0\]|extra\['a'\]) is a \w+ of dtype .*cannot be hashed"
        ):
            call()


# Memory of tensors


def freed(view: Callable[[Tensor], Tensor], num_bytes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a view of a tensor of 1000 elements whose storage was then resized."""
    base = torch.zeros(1000, dtype=dtype)
    tensor = view(base)
    base.untyped_storage().resize_(num_bytes)
    return tensor


FREED: list[tuple[Tensor, int, int]] = [
    (freed(lambda base: base, 0), 4000, 0),
    (freed(lambda base: base, 3999), 4000, 3999),
    (freed(lambda base: base[500:501], 2000), 2004, 2000),
    (freed(lambda base: base[::2], 3992), 3996, 3992),
    (freed(lambda base: base[900:903].expand(4, 3), 0), 3612, 0),
    (freed(lambda base: base.view(10, 100).t(), 400), 4000, 400),
    (freed(lambda base: base.as_subclass(Plain), 8), 4000, 8),
    (freed(lambda base: base, 0, torch.bfloat16), 2000, 0),
    (freed(lambda base: base, 16, torch.float8_e5m2), 1000, 16),
    (freed(lambda base: base.conj(), 16, torch.complex64), 8000, 16),
]


@pytest.mark.parametrize(("tensor", "needed", "found"), FREED)
def test_content_key_of_a_tensor_outside_of_its_storage_is_a_value_error(
    tensor: Tensor, needed: int, found: int
) -> None:
    match = f"is a tensor whose elements need {needed} bytes of its storage, which has {found} bytes$"
    with pytest.raises(ValueError, match=f"^feature {match}"):
        content_key(tensor)
    with pytest.raises(ValueError, match=rf"^extra\['a'\]\[0\] {match}"):
        content_key(b"", extra={"a": [tensor]})
    if tensor.is_contiguous():
        with pytest.raises(ValueError, match=f"^feature {match}"):
            part_keys(tensor, [(0, 1)], [(1,)], [frame(None)], b"")


@pytest.mark.parametrize("num_bytes", [8, 12, 4000])
def test_content_key_of_a_tensor_inside_of_a_resized_storage_is_by_value(num_bytes: int) -> None:
    tensor = freed(lambda base: base[1:2], num_bytes)
    assert content_key(tensor) == content_key(torch.zeros(1))
    assert content_key(freed(lambda base: base[:0], 0)) == content_key(torch.zeros(0))


def test_content_key_of_a_tensor_without_memory_of_its_own_is_a_type_error() -> None:
    with FakeTensorMode():
        fake = torch.zeros(3)
    with pytest.raises(TypeError, match=r"^feature is a FakeTensor, a tensor without memory of its own$"):
        content_key(fake)
    with pytest.raises(
        TypeError, match=r"^feature is a tensor of layout torch.strided on cpu, it must be dense$"
    ):
        content_key(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))

    def refused(row: Tensor) -> Tensor:
        with pytest.raises(
            TypeError, match=r"^extra\[0\] is a tensor without memory of its own, inside of a"
        ):
            content_key(b"", extra=[row])
        return row

    torch.vmap(refused)(torch.ones(2, 3))


@pytest.mark.parametrize("make", [torch._to_functional_tensor, lambda values: torch._efficientzerotensor(4)])
def test_content_key_of_a_tensor_whose_storage_has_no_memory_is_a_type_error(
    make: Callable[[Tensor], Tensor],
) -> None:
    tensor = make(torch.ones(4))
    assert tensor.untyped_storage().nbytes() == 16
    match = "is a tensor without memory of its own, such as a functional tensor$"
    with pytest.raises(TypeError, match=f"^feature {match}"):
        content_key(tensor)
    with pytest.raises(TypeError, match=f"^feature {match}"):
        part_keys(tensor, [(0, 1)], [(1,)], [frame(None)], b"")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_content_key_of_a_negative_view_is_by_value(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, -0.5, 0.0], dtype=dtype)
    assert content_key(torch._neg_view(tensor)) == content_key(-tensor)


# Tensors on a device


class OnDevice(Tensor):
    """A tensor on the CPU that says that it is on a device."""

    is_cuda = True


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.complex64], ids=str
)
def test_content_key_of_a_tensor_that_is_read_back_equals_that_of_its_values(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = LateCopies()

    def read(tensor: Tensor) -> Any:
        return read_back(tensor.as_subclass(Tensor), copies, 256)

    monkeypatch.setattr(arrays, "read_back", read)
    tensor = (torch.arange(720) % 251).reshape(9, 8, 10).to(dtype)
    for view in (tensor, tensor.permute(2, 0, 1), tensor[::2, 1:], tensor[:0], tensor[0, 0, 0]):
        on_device, started = view.as_subclass(OnDevice), copies.num_started
        assert content_key(on_device) == content_key(view)
        assert content_key([on_device, b"a"], extra=on_device) == content_key([view, b"a"], extra=view)
        assert (copies.num_started > started) == (view.numel() > 0)
    assert copies.num_started == copies.num_complete


# Blocks


@pytest.mark.parametrize(
    "array",
    [np.zeros((4000, 2000), np.uint8)[:, ::2], np.zeros((1000, 1000), ">f4")],
    ids=["strided", "swapped"],
)
def test_blocks_of_a_large_array_that_needs_a_copy_have_at_most_block_bytes(array: np.ndarray) -> None:
    blocks = list(array_blocks(array))
    assert sum(len(block) for block in blocks) == 4_000_000
    assert max(len(block) for block in blocks) <= BLOCK_BYTES


def test_blocks_of_a_contiguous_array_are_one_view() -> None:
    array = np.zeros((1500, 1000), np.float32)
    [block] = array_blocks(array)
    assert np.shares_memory(block, array)


class Resizing(dict[str, object]):
    """Values of `extra` that free the memory of a tensor when they are read."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(a=1)
        self.tensor = tensor

    def items(self) -> object:  # type: ignore[override]
        self.tensor.untyped_storage().resize_(0)
        return super().items()


def test_content_key_of_a_tensor_that_is_freed_while_extra_is_read_is_a_value_error() -> None:
    tensor = torch.ones(1000)
    with pytest.raises(ValueError, match=r"^feature is a tensor whose elements need 4000 bytes"):
        content_key(tensor, extra=Resizing(tensor))


class Lying(np.ndarray):
    """An array that gives another dtype than its own."""

    dtype = np.dtype(np.float64)  # type: ignore[assignment]


def test_content_key_of_an_array_with_a_dtype_of_its_own_reads_the_true_one() -> None:
    values = np.arange(3, dtype=np.int16)
    assert content_key(values.view(Lying)) == content_key(values)
    with pytest.raises(TypeError, match=r"^feature is a Lying of dtype object, which cannot be hashed$"):
        content_key(np.array([object()]).view(Lying))
