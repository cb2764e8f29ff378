"""`to_int`, `to_ms` and `to_device` convert valid arguments. Errors name the argument."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from vitcache import CudaError
from vitcache.arguments import to_device, to_int, to_ms


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_to_int_converts_integers_to_int(value: int) -> None:
    number = to_int("page_rows", value, 3)
    assert type(number) is int
    assert number == 3


@pytest.mark.parametrize("value", [3.0, "3", None, True, np.float32(3)])
def test_to_int_of_a_value_that_is_not_an_integer_is_a_type_error(value: object) -> None:
    message = f"page_rows must be an int, got {value!r} of type {type(value).__name__}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        to_int("page_rows", value, 1)  # type: ignore[arg-type]


def test_to_int_below_the_minimum_is_a_value_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"^num_rows is -1, it must be at least 0$"):
        to_int("num_rows", -1, 0)


@pytest.mark.parametrize("value", [0, 2, 1.5, np.float32(0.5), Fraction(1, 2)])
def test_to_ms_converts_real_numbers_to_float(value: float) -> None:
    time = to_ms("encode_ms", value)
    assert type(time) is float
    assert time == float(value)


@pytest.mark.parametrize("value", ["1", None, True, 1j])
def test_to_ms_of_a_value_that_is_not_a_real_number_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match=r"^encode_ms must be a number, got"):
        to_ms("encode_ms", value)


@pytest.mark.parametrize("value", [-0.1, math.inf, -math.inf, math.nan])
def test_to_ms_of_a_negative_or_infinite_value_or_nan_is_a_value_error(value: float) -> None:
    with pytest.raises(ValueError, match=f"^encode_ms is {value}, it must be finite and at least 0$"):
        to_ms("encode_ms", value)


def test_to_device_returns_a_cuda_device_with_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert to_device(None) == to_device("cuda") == torch.device("cuda", 2)
    assert to_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_to_device_without_a_gpu_defaults_to_the_cpu_and_refuses_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert to_device(None) == torch.device("cpu")
    with pytest.raises(CudaError, match=r"^device is cuda:1, but torch finds no CUDA device$"):
        to_device("cuda:1")


@pytest.mark.parametrize("device", ["meta", "nonsense", "xpu"])
def test_to_device_neither_cpu_nor_cuda_is_a_value_error(device: str) -> None:
    with pytest.raises(ValueError, match=f"device is .*{device}.*, it must be the CPU or a CUDA device"):
        to_device(device)
