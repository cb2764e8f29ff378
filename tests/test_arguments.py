"""The functions of `vitcache.arguments` convert valid arguments. Errors name the argument."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from threading import TIMEOUT_MAX
from typing import Any

import numpy as np
import pytest
import torch

from vitcache import CudaError
from vitcache.arguments import INT64_MAX, shown, to_bytes, to_device, to_int, to_ms, to_timeout


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_to_int_converts_integers_to_int(value: int) -> None:
    number = to_int("page_rows", value, 3)
    assert type(number) is int
    assert number == 3


BOOLS = [True, False, np.bool_(True), np.array(True), torch.tensor(True), torch.tensor(False)]


@pytest.mark.parametrize("value", [3.0, "3", None, np.float32(3), torch.tensor(3.0), np.ones(2, int), *BOOLS])
def test_to_int_of_a_value_that_is_not_an_integer_is_a_type_error(value: object) -> None:
    message = f"page_rows must be an int, got {value!r} of type {type(value).__name__}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        to_int("page_rows", value, 1)  # type: ignore[arg-type]


def test_to_int_below_the_minimum_is_a_value_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"^num_rows is -1, it must be at least 0$"):
        to_int("num_rows", -1, 0)


def test_to_int_without_a_minimum_accepts_every_integer() -> None:
    for number in (-(1 << 70), -1, 0, 1 << 70):
        assert to_int("identifier", number) == number


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (np.int64(4096), 4096),
        (torch.tensor(7), 7),
        ("0B", 0),
        ("17 B", 17),
        ("1KB", 1000),
        ("3 MB", 3_000_000),
        ("1.5 GB", 1_500_000_000),
        ("2TB", 2 * 10**12),
        ("1KiB", 1024),
        ("512 MiB", 512 << 20),
        ("8GiB", 8 << 30),
        ("1.5GiB", 3 << 29),
        ("0.5 TiB", 1 << 39),
        ("0.001 KB", 1),
        ("0.1KB", 100),
        ("007 KiB", 7 << 10),
        ("99999999999999999999 TiB", 99999999999999999999 << 40),
    ],
)
def test_to_bytes_reads_ints_and_numbers_with_a_unit_exactly(value: int | str, size: int) -> None:
    number = to_bytes("device_bytes", value, 0)
    assert type(number) is int
    assert number == size


@pytest.mark.parametrize("value", [8e9, None, b"8GiB", ["8GiB"], Fraction(8), *BOOLS])
def test_to_bytes_of_neither_an_int_nor_a_str_is_a_type_error(value: object) -> None:
    message = (
        f"device_bytes must be an int or a str such as '8GiB', got {value!r} of type {type(value).__name__}"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        to_bytes("device_bytes", value, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        *("", "8", "GiB", "8G", "8gib", "8 gb", "8kB", "8Gb", "8 PiB", "8  GiB", " 8GiB", "8GiB ", "8GiB\n"),
        *(
            "8\tGiB",
            "-8GiB",
            "+8GiB",
            "8.GiB",
            ".5GiB",
            "1e9B",
            "1_000B",
            "1,5GiB",
            "0x10B",
            "٨GiB",
            "8GiB8GiB",
        ),
        *("nan GiB", "inf B", "1" * 21 + "B", "0." + "1" * 21 + "B", "9" * 100_000 + "B"),
    ],
)
def test_to_bytes_of_a_str_of_another_form_names_the_units(value: str) -> None:
    message = (
        f"host_bytes is {value[:50]!r}, it must be a number and a unit such as '8GiB'; units: B, KB, MB, "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        to_bytes("host_bytes", value, 0)


@pytest.mark.parametrize("value", ["0.5B", "1.0001 KB", "0.3KiB", "0.0000000001GB"])
def test_to_bytes_of_a_str_with_a_fraction_of_a_byte_is_a_value_error(value: str) -> None:
    with pytest.raises(ValueError, match=f"^host_bytes is '{value}', which is .* a whole number of bytes$"):
        to_bytes("host_bytes", value, 0)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (255, "capacity_bytes is 255, it must be at least 256"),
        (-1, "capacity_bytes is -1, it must be at least 256"),
        ("0.25 KB", "capacity_bytes is '0.25 KB', which is 250 bytes: it must be at least 256"),
    ],
)
def test_to_bytes_below_the_minimum_is_a_value_error_with_both_numbers(value: int | str, match: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(match)}$"):
        to_bytes("capacity_bytes", value, 256)


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


@pytest.mark.parametrize("device", [True, 1.5, torch.tensor(0)], ids=str)
def test_to_device_of_a_wrong_type_is_a_type_error(device: Any) -> None:
    message = f"device must be a torch.device or a str, got .* of type {type(device).__name__}"
    with pytest.raises(TypeError, match=message):
        to_device(device)


HUGE = 10**5000  # Python refuses its repr


def test_to_int_above_the_maximum_is_a_value_error_with_both_numbers() -> None:
    assert to_int("num_rows", INT64_MAX, 0, INT64_MAX) == INT64_MAX
    with pytest.raises(ValueError, match=f"^num_rows is {2**63}, it must be at most {INT64_MAX}$"):
        to_int("num_rows", 2**63, 0, INT64_MAX)


@pytest.mark.parametrize(
    ("value", "text"), [(HUGE, r"2\*\*16609 or more"), (-HUGE, r"-2\*\*16609 or more")], ids=["huge", "-huge"]
)
def test_numbers_beyond_repr_are_value_errors_that_name_the_argument(value: int, text: str) -> None:
    with pytest.raises(ValueError, match=f"^num_rows is {text}, it must be at"):
        to_int("num_rows", value, 0, INT64_MAX)
    with pytest.raises(ValueError, match=f"^encode_ms is {text}, it must be finite"):
        to_ms("encode_ms", value)
    with pytest.raises(ValueError, match=f"^timeout_s is {text}, it must be finite"):
        to_timeout("timeout_s", value)


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, 1e300, 10**400])
def test_to_timeout_of_a_limit_that_no_wait_accepts_is_a_value_error(value: float) -> None:
    with pytest.raises(ValueError, match=r"^timeout_s is .*, it must be finite, at least 0 and at most \d+$"):
        to_timeout("timeout_s", value)


@pytest.mark.parametrize("value", ["1", True, 1j, []])
def test_to_timeout_of_neither_a_number_nor_none_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match=r"^timeout_s must be a number of seconds, got"):
        to_timeout("timeout_s", value)


def test_to_timeout_returns_seconds_as_a_float_and_none_as_it_is() -> None:
    assert to_timeout("timeout_s", None) is None
    assert to_timeout("timeout_s", np.float32(0.5)) == 0.5
    assert to_timeout("timeout_s", TIMEOUT_MAX) == TIMEOUT_MAX


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


def test_shown_is_short_and_never_raises() -> None:
    assert shown(7) == "7"
    assert shown("x" * 500) == "'" + "x" * 96 + "..."
    assert shown(Fraction(HUGE)) == "<Fraction>"
    assert shown(Broken()) == "<Broken>"
    with pytest.raises(TypeError, match=r"^page_rows must be an int, got <Broken> of type Broken$"):
        to_int("page_rows", Broken())  # type: ignore[arg-type]
