"""Checks of tensors of rows, and the kind numbers of the dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vitcache import rows
from vitcache._native import PagedRows
from vitcache.rows import DTYPES, KINDS, can_be_stored, check_dtype, check_layout, check_rows


def test_kinds_are_numbered_as_in_native_code() -> None:
    assert [KINDS[dtype] for dtype in (torch.float32, torch.float16, torch.bfloat16)] == [0, 1, 2]
    assert set(KINDS) == set(DTYPES)
    PagedRows(0, 8, 1, KINDS[torch.bfloat16], [0], 1, 4, False, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_check_rows_returns_the_rows_of_each_dtype_without_gradient(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 4, dtype=dtype, requires_grad=True)
    checked = check_rows(tensor, 4)
    assert not checked.requires_grad
    assert checked.data_ptr() == tensor.data_ptr()
    assert check_rows(torch.empty(0, 4, dtype=dtype), 4).shape == (0, 4)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 4).to_sparse(), torch.ones(2, 4, device="meta")],
    ids=["dtype", "layout", "device"],
)
def test_check_rows_of_an_unsupported_tensor_is_a_type_error_that_names_it(tensor: torch.Tensor) -> None:
    assert not can_be_stored(tensor)
    with pytest.raises(
        TypeError, match=f"rows is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}"
    ):
        check_rows(tensor, 4)


def test_check_rows_of_a_list_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"^rows must be a tensor, got list$"):
        check_rows([[1.0]], 1)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 5), (1, 2, 4)])
def test_check_rows_of_a_wrong_shape_is_a_value_error_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"rows has shape \({', '.join(map(str, shape))},?\), .*num_rows, 4"
    ):
        check_rows(torch.ones(shape), 4)


def test_check_dtype_and_check_layout_name_the_tensor() -> None:
    check_dtype("out", torch.ones(1, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"^out is torch.int64, it must be float32, float16 or bfloat16$"):
        check_dtype("out", torch.ones(1, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^out is a torch.sparse_coo tensor, it must be dense$"):
        check_dtype("out", torch.ones(1).to_sparse())
    check_layout("out", torch.ones(1, dtype=torch.int64))
    assert rows.DTYPE_NAMES == "torch.float32, torch.float16, torch.bfloat16"


def freed(view: Callable[[torch.Tensor], torch.Tensor], num_bytes: int) -> torch.Tensor:
    """Return a view of a tensor ``(6, 4)`` of float32 whose storage was then resized."""
    base = torch.zeros(6, 4)
    tensor = view(base)
    base.untyped_storage().resize_(num_bytes)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "needed", "found"),
    [
        (freed(lambda base: base, 0), 96, 0),
        (freed(lambda base: base, 95), 96, 95),
        (freed(lambda base: base[4:], 64), 96, 64),
        (freed(lambda base: base[::5], 80), 96, 80),
        (freed(lambda base: base[2:3].expand(9, 4), 32), 48, 32),
    ],
)
def test_check_rows_outside_of_their_storage_is_a_value_error_with_both_sizes(
    tensor: torch.Tensor, needed: int, found: int
) -> None:
    with pytest.raises(ValueError, match=f"^rows is a tensor whose elements need {needed} .* has {found} b"):
        check_rows(tensor, 4)


@pytest.mark.parametrize("num_bytes", [48, 52, 4000])
def test_check_rows_inside_of_a_resized_storage_is_accepted(num_bytes: int) -> None:
    assert check_rows(freed(lambda base: base[:3], num_bytes), 4).shape == (3, 4)
    assert check_rows(freed(lambda base: base[6:], 0), 4).shape == (0, 4)


def test_rows_without_memory_of_their_own_or_nested_are_a_type_error() -> None:
    with FakeTensorMode():
        fake = torch.zeros(2, 4)
    with pytest.raises(TypeError, match=r"^rows is a FakeTensor, a tensor without memory of its own$"):
        check_rows(fake, 4)
    with pytest.raises(TypeError, match=r"^rows is a tensor without memory of its own, such as a functional"):
        check_rows(torch._to_functional_tensor(torch.ones(2, 4)), 4)
    nested = torch.nested.nested_tensor([torch.ones(1, 4), torch.ones(2, 4)])
    assert not can_be_stored(nested)
    with pytest.raises(TypeError, match=r"^rows is a nested tensor of torch.float32 on cpu, it must be a"):
        check_rows(nested, 4)
    with pytest.raises(TypeError, match=r"^out is a nested tensor, it must be dense$"):
        check_layout("out", nested)
