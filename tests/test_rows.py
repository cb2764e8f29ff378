"""What a tensor of rows is."""

from __future__ import annotations

import pytest
import torch

from vitcache import rows
from vitcache._native import PagedRows
from vitcache.rows import DTYPES, KINDS, can_be_stored, check_dtype, check_layout, check_rows


def test_kinds_are_numbered_as_in_native_code() -> None:
    assert [KINDS[dtype] for dtype in (torch.float32, torch.float16, torch.bfloat16)] == [0, 1, 2]
    assert set(KINDS) == set(DTYPES)
    PagedRows(0, 8, 1, KINDS[torch.bfloat16], [0], 1, 4, False, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_each_dtype_are_taken_without_their_gradient(dtype: torch.dtype) -> None:
    given = torch.ones(3, 4, dtype=dtype, requires_grad=True)
    taken = check_rows(given, 4)
    assert not taken.requires_grad
    assert taken.data_ptr() == given.data_ptr()
    assert check_rows(torch.empty(0, 4, dtype=dtype), 4).shape == (0, 4)


@pytest.mark.parametrize(
    "given",
    [torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 4).to_sparse(), torch.ones(2, 4, device="meta")],
    ids=["dtype", "layout", "device"],
)
def test_what_cannot_be_stored_is_a_type_error_that_says_what_it_is(given: torch.Tensor) -> None:
    assert not can_be_stored(given)
    with pytest.raises(
        TypeError, match=f"rows is a {given.layout} tensor of {given.dtype} on {given.device}"
    ):
        check_rows(given, 4)


def test_what_is_no_tensor_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"^rows must be a tensor, it is list$"):
        check_rows([[1.0]], 1)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 5), (1, 2, 4)])
def test_another_shape_is_a_value_error_with_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"rows has shape \({', '.join(map(str, shape))},?\), .*num_rows, 4"
    ):
        check_rows(torch.ones(shape), 4)


def test_the_checks_of_a_destination_name_it() -> None:
    check_dtype("out", torch.ones(1, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"^out is torch.int64, it must be float32, float16 or bfloat16$"):
        check_dtype("out", torch.ones(1, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^out is a torch.sparse_coo tensor, it must be dense$"):
        check_dtype("out", torch.ones(1).to_sparse())
    check_layout("out", torch.ones(1, dtype=torch.int64))
    assert rows.DTYPE_NAMES == "torch.float32, torch.float16, torch.bfloat16"
