"""Settings: the options of ec_connector_extra_config, their defaults, and each error of them at start-up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitcache.adapters.vllm.settings import OPTIONS, Settings

GIB = 1 << 30
DEVICE = {"device_bytes": "2GiB"}


def config(
    options: Any = DEVICE, *, widths: dict[str, int] | None = None, model: dict[str, Any] | None = None
) -> Any:
    """The smallest configuration: a model with 4096 elements per row."""
    fields = {
        "model": "a model",
        "revision": None,
        "dtype": torch.bfloat16,
        "hf_text_config": SimpleNamespace(hidden_size=4096),
        "hf_config": SimpleNamespace(),
    }
    transfer = SimpleNamespace(
        ec_role="ec_both", ec_connector_extra_config=options, mm_encoder_output_widths=widths or {}
    )
    return SimpleNamespace(
        ec_transfer_config=transfer, model_config=SimpleNamespace(**{**fields, **(model or {})})
    )


def read(options: Any = DEVICE, **rest: Any) -> Settings:
    return Settings.from_config(config(options, **rest))


def test_from_config_without_further_options_has_no_host_tier() -> None:
    settings = read()
    assert (settings.device_bytes, settings.host_bytes) == (2 * GIB, 0)
    assert (settings.page_rows, settings.row_width, settings.dtype) == (16, 4096, torch.bfloat16)
    assert (settings.page_bytes, settings.device_pages, settings.host_pages) == (16 * 8192, 16384, 0)
    assert len(settings.namespace) == 32
    assert settings.widths == {}


def test_from_config_reads_sizes_as_ints_and_as_strings() -> None:
    settings = read({"device_bytes": 3 << 20, "host_bytes": "16 MiB", "page_rows": 32, "row_width": 1024})
    assert (settings.device_bytes, settings.host_bytes) == (3 << 20, 16 << 20)
    assert (settings.page_rows, settings.row_width) == (32, 1024)
    assert (settings.device_pages, settings.host_pages) == (48, 256)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, r"\['device_bytes'\] is missing"),
        ({"host_bytes": "1GiB"}, ValueError, r"\['device_bytes'\] is missing"),
        ([("device_bytes", 1)], TypeError, "must be a dict, got list"),
        (
            {**DEVICE, "device_byte": 1, "rows": 2},
            ValueError,
            "unknown options device_byte, rows; known options: " + ", ".join(OPTIONS),
        ),
        ({"device_bytes": "1KiB"}, ValueError, r"\['device_bytes'\] is 1024, it must be at least 131072"),
        ({"device_bytes": 0}, ValueError, r"\['device_bytes'\] is 0, it must be at least 131072"),
        ({"device_bytes": -1}, ValueError, r"\['device_bytes'\] is -1"),
        ({"device_bytes": 2e9}, TypeError, r"\['device_bytes'\] must be an int or a str"),
        ({"device_bytes": True}, TypeError, r"\['device_bytes'\] must be an int or a str"),
        ({"device_bytes": None}, TypeError, r"\['device_bytes'\] must be an int or a str"),
        ({"device_bytes": "2 gigs"}, ValueError, r"\['device_bytes'\] is '2 gigs'"),
        ({**DEVICE, "host_bytes": "1KiB"}, ValueError, r"\['host_bytes'\] is 1024, .* at least 131072"),
        ({**DEVICE, "host_bytes": False}, TypeError, r"\['host_bytes'\] must be an int or a str"),
        ({**DEVICE, "page_rows": 0}, ValueError, r"\['page_rows'\] is 0, it must be at least 1"),
        ({**DEVICE, "page_rows": "16"}, TypeError, r"\['page_rows'\] must be an int"),
        ({**DEVICE, "row_width": 0}, ValueError, r"\['row_width'\] is 0, it must be at least 1"),
        ({**DEVICE, "row_width": True}, TypeError, r"\['row_width'\] must be an int"),
        ({**DEVICE, "row_width": 4096.0}, TypeError, r"\['row_width'\] must be an int"),
    ],
)
def test_from_config_refuses_a_wrong_option_and_names_it(
    options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(options)


def test_from_config_names_the_layout_of_the_page_that_a_tier_must_hold() -> None:
    with pytest.raises(ValueError, match=r"one page of 16 rows of 4096 elements of torch\.bfloat16"):
        read({"device_bytes": 131071})
    assert read({"device_bytes": 131072}).device_pages == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.int8])
def test_from_config_refuses_a_dtype_that_pages_cannot_store(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"the model's dtype is {dtype}, it must be one of torch.float32"):
        read(model={"dtype": dtype})


def test_from_config_accepts_widths_that_divide_the_row_width() -> None:
    settings = read(widths={"image": 4096, "audio": 1024})
    assert [settings.width_of(name) for name in ("image", "audio", "video")] == [4096, 1024, 4096]


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"image": 16384}, r"'image' have width 16384, .* row_width, 4096: set row_width .* to 16384"),
        ({"image": 4096, "video": 4101}, r"'video' have width 4101, .* row_width, 4096: set row_width .* to"),
        ({"image": 0}, r"'image' have width 0"),
    ],
)
def test_from_config_refuses_a_measured_width_that_does_not_fit(widths: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(widths=widths)


def test_row_width_of_the_message_is_accepted() -> None:
    widths = {"image": 16384, "audio": 4096}
    with pytest.raises(ValueError, match=r"to 16384$"):
        read(widths=widths)
    assert read({**DEVICE, "row_width": 16384}, widths=widths).row_width == 16384


def test_pages_for_counts_as_the_cache_does() -> None:
    from vitcache.cache.embedding_cache import EmbeddingCache

    settings = read({"device_bytes": "1MiB", "page_rows": 4, "row_width": 8})
    cache = EmbeddingCache(8, dtype=torch.bfloat16, device="cpu", device_bytes="1MiB", page_rows=4)
    try:
        assert settings.device_pages == cache.device_pages
        for num_rows in (0, 1, 4, 5, 8, 9, 1000):
            for width in (None, 8, 4, 2, 1):
                assert settings.pages_for(num_rows, width) == cache.pages_for(num_rows, width)
    finally:
        cache.close()


@pytest.mark.parametrize(
    ("num_rows", "width", "error", "message"),
    [
        (-1, None, ValueError, "num_rows is -1, it must be at least 0"),
        (True, None, TypeError, "num_rows must be an int"),
        (1, 3, ValueError, "width is 3, it must divide .* 4096"),
        (1, 0, ValueError, "width is 0"),
    ],
)
def test_pages_for_refuses_a_wrong_number(
    num_rows: Any, width: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read().pages_for(num_rows, width)


def test_namespace_differs_by_model_revision_dtype_and_options() -> None:
    multimodal = SimpleNamespace(mm_encoder_attn_dtype="fp8", video_pruning_rate=None)
    models: list[dict[str, Any]] = [
        {},
        {"model": "another model"},
        {"revision": "main"},
        {"dtype": torch.float16},
        {"quantization": "fp8"},
        {"multimodal_config": multimodal},
    ]
    namespaces = [read(model=model).namespace for model in models]
    assert len(set(namespaces)) == len(models)
    assert read().namespace == namespaces[0]


def test_settings_are_immutable() -> None:
    with pytest.raises(AttributeError):
        read().page_rows = 2  # type: ignore[misc]
