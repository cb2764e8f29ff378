"""`make_memory`: the tiers and the ring of a model, and the line of the log that shows them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.model import HIDDEN, Model
from sglang_fakes.requests import Inputs, image
from sglang_fakes.scene import Scene, Window

from vitcache import PinnedRing
from vitcache.adapters.sglang import model_memory, service
from vitcache.adapters.sglang.encoder_calls import max_rows_per_encode
from vitcache.adapters.sglang.model_cache import StepShape, make_cache
from vitcache.adapters.sglang.model_memory import UNRESERVED_BYTES, make_memory
from vitcache.adapters.sglang.options import Options
from vitcache.pipeline.feature_mover import RING_BYTES

CPU = torch.device("cpu")
SHAPE = StepShape(HIDDEN, 0, torch.float32, CPU)
ON_CUDA = StepShape(HIDDEN, 0, torch.float32, torch.device("cuda", 0))
MIB = 1 << 20


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[PinnedRing]:
    """The rings that were made, in order."""
    rings: list[PinnedRing] = []

    def make_ring(num_bytes: int, **options: Any) -> PinnedRing:
        rings.append(PinnedRing(num_bytes, num_threads=1, **options))
        return rings[-1]

    monkeypatch.setattr(model_memory, "PinnedRing", make_ring)
    return rings


def step(scene: Scene, seed: int = 1) -> None:
    scene.step(Window(Inputs([image(seed, (1, 3))]), 0, 6))


@pytest.mark.parametrize("num_bytes", [256, 1 << 16])
def test_ring_of_the_option_copies_the_features_of_a_step(
    monkeypatch: pytest.MonkeyPatch, made: list[PinnedRing], num_bytes: int
) -> None:
    scene = Scene(monkeypatch, ring_bytes=num_bytes)
    step(scene)
    [ring] = made
    assert ring.capacity_bytes >= num_bytes
    assert ring.stats().copies == 1
    step(scene, 2)
    assert ring.stats().copies == 2


def test_ring_of_the_start_is_that_of_the_first_step_and_is_closed_with_its_cache(
    monkeypatch: pytest.MonkeyPatch, made: list[PinnedRing]
) -> None:
    scene = Scene(monkeypatch, ring_bytes="1 MiB")
    scene.service.make_early(scene.model, SHAPE)
    step(scene)
    service.STOCK_CACHE.make(lambda size: None, 4096)
    step(scene)
    first, second = made
    with pytest.raises(RuntimeError, match="closed"):
        first.copy_to(torch.zeros(1), torch.zeros(1))
    assert second.stats().copies == 1


def test_ring_of_the_start_is_closed_if_the_first_step_has_another_shape(
    monkeypatch: pytest.MonkeyPatch, made: list[PinnedRing]
) -> None:
    scene = Scene(monkeypatch, Model(levels=1), ring_bytes="1 MiB")
    scene.service.make_early(scene.model, SHAPE)
    step(scene)
    first, second = made
    with pytest.raises(RuntimeError, match="closed"):
        first.copy_to(torch.zeros(1), torch.zeros(1))
    assert second.stats().copies == 1


def test_cpu_has_no_ring_without_the_option(monkeypatch: pytest.MonkeyPatch, made: list[PinnedRing]) -> None:
    step(Scene(monkeypatch))
    assert made == []


def moving(*names: str) -> Any:
    """A model with encoders of images and audio. Those of `names` move features to the device themselves."""
    encoders = {name: f"get_{name}_feature" for name in ("image", "audio")}
    return SimpleNamespace(**{path: "moves" if name in names else "left" for name, path in encoders.items()})


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (moving("image", "audio"), Options(), None),
        (moving("image"), Options(), RING_BYTES),
        (Model(), Options(), RING_BYTES),
        (None, Options(), RING_BYTES),
        (Model(), Options(ring_bytes=MIB), MIB),
        (moving("image", "audio"), Options(ring_bytes=MIB), MIB),
    ],
    ids=["moves", "moves some", "moves none", "no model", "size", "size and moves"],
)
def test_ring_on_cuda_has_the_size_of_the_option_or_is_made_for_the_encoders(
    monkeypatch: pytest.MonkeyPatch, model: Any, options: Options, expected: int | None
) -> None:
    schedule: Any = ModuleType("sglang.srt.managers.mm_schedule")
    schedule._can_skip_pre_embed_feature_move = lambda encoder: encoder == "moves"
    monkeypatch.setitem(sys.modules, schedule.__name__, schedule)
    monkeypatch.setattr(model_memory, "make_cache", lambda shape, *others: make_cache(SHAPE, *others))
    asked: list[Any] = []

    def make_ring(num_bytes: int, *, backend: str, device: torch.device) -> PinnedRing:
        asked.append((num_bytes, backend, device))
        return PinnedRing(256, num_threads=1, backend="host")

    monkeypatch.setattr(model_memory, "PinnedRing", make_ring)
    make_memory(model, ON_CUDA, 4096, options).close()
    assert asked == ([] if expected is None else [(expected, "cuda", ON_CUDA.device)])


def test_ring_that_does_not_fit_is_named_and_the_cache_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[Any] = []

    def record(*arguments: Any) -> Any:
        caches.append(make_cache(*arguments))
        return caches[-1]

    monkeypatch.setattr(model_memory, "make_cache", record)
    with pytest.raises(MemoryError, match="ring_bytes"):
        make_memory(Model(), SHAPE, 4096, Options(ring_bytes=1 << 60))
    with pytest.raises(RuntimeError, match="closed"):
        caches[0].stats()


def line_of(caplog: pytest.LogCaptureFixture, reserved: int, shape: StepShape = SHAPE, **options: Any) -> str:
    """The only line that `make_memory` logs."""
    [line] = lines_of(caplog, reserved, shape, **options)
    return line


def lines_of(caplog: pytest.LogCaptureFixture, reserved: int, shape: StepShape, **options: Any) -> list[str]:
    """The lines that `make_memory` logs."""
    caplog.clear()
    caplog.set_level(logging.INFO, "vitcache.adapters.sglang")
    make_memory(Model(shape.levels), shape, reserved, Options(**options)).close()
    records = [record for record in caplog.records if record.name == "vitcache.adapters.sglang"]
    assert {record.levelno for record in records} == {logging.INFO}
    return [record.getMessage() for record in records]


@pytest.mark.parametrize(
    ("reserved", "device_bytes", "text"),
    [
        (2 * MIB, None, "2 MiB on cpu (SGLANG_VLM_CACHE_SIZE_MB),"),
        (0, None, "100 MiB on cpu (default, 100 MiB of it not reserved by SGLang),"),
        (2 * MIB, 2 * MIB, "2 MiB on cpu (device_bytes),"),
        (4 * MIB, 2 * MIB, "2 MiB on cpu (device_bytes),"),
        (4 * MIB, MIB // 4, "0.25 MiB on cpu (device_bytes),"),
        (2 * MIB, 5 * MIB, "5 MiB on cpu (device_bytes, 3 MiB of it not reserved by SGLang),"),
    ],
)
def test_line_says_where_the_size_is_from_and_which_bytes_are_not_reserved(
    caplog: pytest.LogCaptureFixture, reserved: int, device_bytes: int | None, text: str
) -> None:
    assert text in line_of(caplog, reserved, device_bytes=device_bytes)


@pytest.mark.parametrize("reserved", [0, 3, 256, 4096])
@pytest.mark.parametrize("device_bytes", [1, 17, 100, 4000, 4096, 5000])
def test_bytes_that_are_not_reserved_are_those_of_the_tier(
    caplog: pytest.LogCaptureFixture, reserved: int, device_bytes: int
) -> None:
    """A tier has at least a row, and whole pages."""
    line = line_of(caplog, reserved, device_bytes=device_bytes)
    with make_cache(SHAPE, device_bytes, Options()) as cache:
        unreserved = cache.stats().device_capacity_bytes - reserved
    text = f" (device_bytes, {unreserved / MIB:.3g} MiB of it not reserved by SGLang), "
    assert (text if unreserved > 0 else " (device_bytes), ") in line


def test_line_shows_every_option(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    shape = StepShape(HIDDEN, 3, torch.bfloat16, CPU)
    options: dict[str, Any] = {
        "device_bytes": 3 * MIB,
        "host_bytes": 7 * MIB,
        "max_rows_per_encode": 123,
        "policy": "cost",
        "ring_bytes": 5 * MIB,
        "trust_engine_hash": True,
        "disk": str(tmp_path),
        "disk_bytes": 9 * MIB,
        "mooncake": "127.0.0.1:9",
        "mooncake_worth": None,
        "weights_name": "v1",
    }
    assert set(options) == set(Options.__dataclass_fields__)
    line, name = lines_of(caplog, 0, shape, **options)
    with make_cache(shape, 3 * MIB, Options(**options)) as cache:
        pages = f"pages of {cache.page_rows} rows of {cache.row_width} elements of bfloat16"
    for text in (
        *(
            "the rows of Model:",
            "3 MiB on cpu (device_bytes,",
            "7 MiB in host memory",
            "9 MiB on disk",
            "mooncake 127.0.0.1:9",
            pages,
        ),
        *("3 deepstack levels", "policy cost", "at most 123 rows per encode", "ring of 5 MiB"),
        *("tensor parallel rank 0 of 1", "trust_engine_hash true"),
    ):
        assert text in line
    places = f"{tmp_path} and the store of 127.0.0.1:9"
    assert name == f"vitcache finds the rows of {places} after a restart with the weights 'v1'"


def test_line_of_default_options_has_their_values(caplog: pytest.LogCaptureFixture) -> None:
    line = line_of(caplog, MIB)
    rows = max_rows_per_encode(Options())
    for text in (
        *(
            "0 MiB in host memory",
            "0 MiB on disk",
            "mooncake none",
            "0 deepstack levels",
            "policy lru",
            f"at most {rows} rows per encode",
        ),
        *("ring of 0 MiB", "trust_engine_hash false"),
    ):
        assert text in line


def test_start_logs_the_line_and_the_first_step_logs_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(monkeypatch, device_bytes="3 MiB")
    caplog.set_level(logging.INFO, "vitcache.adapters.sglang")
    scene.service.make_early(scene.model, SHAPE)
    [record] = caplog.records
    assert "3 MiB on cpu" in record.getMessage()
    step(scene)
    assert len(caplog.records) == 1


def test_tier_without_a_size_or_reserved_bytes_has_the_default_of_sglang() -> None:
    memory = make_memory(None, SHAPE, 0, Options())
    assert memory.cache.stats().device_capacity_bytes == UNRESERVED_BYTES
    memory.close()
