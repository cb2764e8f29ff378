"""`warm_up` loads the kernels that placements launch: exactly these kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from deepstack_forms import make_levels
from placement_cases import make_rows, poisoned

from vitcache import PlacementTable, Span, embed_tokens, scatter_embeddings, warm_up
from vitcache.placement import dispatch
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.placement import Placement
from vitcache.placement.scatter_call import ScatterCall

pytest.importorskip("triton")

from fake_kernels import KERNELS, install, loaded

from vitcache.placement import kernel_variants
from vitcache.triton_kernels.launch import Variant
from vitcache.triton_kernels.scatter_rows import ARGUMENTS as SCATTER_ARGUMENTS
from vitcache.triton_kernels.scatter_rows import scatter_kernel

pytestmark = pytest.mark.triton

BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def unaligned(rows: torch.Tensor) -> torch.Tensor:
    """Equal rows whose first byte is not at a multiple of 16 bytes."""
    wide = torch.empty(len(rows), rows.shape[1] + 1, dtype=rows.dtype)
    wide[:, 1:] = rows
    return wide[:, 1:]


def calls(
    hidden: int,
    sources: tuple[torch.dtype, ...],
    *,
    levels: int = 0,
    scale: bool = False,
    text_scale: bool = False,
    store: bool = True,
    table: bool = True,
    level_forms: tuple[str, ...] = ("tensor", "list", "packed"),
    narrow: bool = True,
) -> Iterator[str]:
    """Make calls of every kind that the flags describe; yield what was called."""
    width = hidden * (1 + levels)
    weight = make_rows(9, hidden, BF16)
    with torch.no_grad():
        for tokens, id_dtype, first in product((1, 5, 16, 17), (torch.int64, torch.int32), (0, 1)):
            ids = torch.zeros(tokens + 1, dtype=id_dtype)[first : first + tokens]
            embed_tokens(ids, weight, [], [])
            embed_tokens(ids[:0], weight, [], [])
        yield "text"
        for source, layout, factor, text_factor, kind_form_width in product(
            sources,
            (lambda rows: rows, unaligned),
            (None, 0.5) if scale else (None,),
            (None, 2.0) if text_scale else (None,),
            [
                (kind, form, row_width)
                for kind in ("place", *(("store",) if store else ()), *(("table",) if table else ()))
                for form in (level_forms if levels else ("none",))
                for row_width in {width, hidden if narrow else width}
                if kind != "table" or (form != "packed" and row_width == width)
            ],
        ):
            kind, form, row_width = kind_form_width
            rows, num_tokens = make_rows(2, row_width, source), 5
            out = poisoned(num_tokens, hidden, dtype=BF16)
            if kind == "table":  # whose rows must be aligned
                out = layout(out)
            else:
                rows = layout(rows)
            ids = torch.zeros(num_tokens, dtype=torch.int64)
            options: dict[str, Any] = {"scale": factor}
            if levels:
                name = {"tensor": "levels"}.get(form, form)
                levels_argument = make_levels(name, (num_tokens,), hidden, levels, 2, BF16)
                options |= levels_argument
            text = {"text_scale": text_factor, "out": out}
            if kind == "table":
                placed = PlacementTable(8, dtype=source, device="cpu").update([rows], [1])
                scatter_embeddings(out, placed, None, **options)
                embed_tokens(ids, weight, placed, None, **options, **text)
            else:
                cache = make_cache(4, width=row_width, dtype=BF16, page_rows=2)
                options.setdefault("deepstack", None)
                for call in (
                    ScatterCall(out, **options),
                    EmbedCall(ids, weight, **text, **options),
                ):
                    store = [cache.reserve(bytes(32), 2)] if kind == "store" else None
                    # A pipeline accepts narrow rows; the functions do not.
                    placed = Placement(call.destination, [rows], [Span(1, 2)], store, accepts_narrow=True)
                    call.run_placed(placed, store)
                    if store:
                        store[0].cancel()
            yield f"{kind} {form} {row_width} {source} scale {factor}, {text_factor}"


FLAGS = [
    {},
    {"scale": True},
    {"text_scale": True},
    {"store": False, "table": False},
    {"levels": 2, "scale": True, "text_scale": True},
    {"levels": 2, "level_forms": ("tensor",), "narrow": False},
    {"levels": 3, "level_forms": ("tensor", "packed"), "store": False},
]


@pytest.mark.parametrize("hidden", [16, 33])
@pytest.mark.parametrize("sources", [(BF16,), (F32, BF16)], ids=str)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_calls_after_warm_up_load_nothing_and_use_every_kernel_that_it_loaded(
    hidden: int, sources: tuple[torch.dtype, ...], flags: dict[str, Any]
) -> None:
    warm_up("cpu", hidden=hidden, dtype=BF16, source_dtypes=sources, **flags)
    at_start, used = loaded(), set()

    for kernel, _ in KERNELS:
        run = kernel.launch

        def record(variant: Variant, *rest: Any, run: Any = run) -> None:
            used.add(variant)
            run(variant, *rest)

        kernel.launch = record  # type: ignore[method-assign]
    try:
        for call in calls(hidden, sources, **flags):
            assert loaded() == at_start, call
    finally:
        for kernel, _ in KERNELS:
            del kernel.launch  # type: ignore[attr-defined]
    assert at_start - used == set()


def test_text_with_a_weight_of_another_dtype_loads_nothing_after_warm_up() -> None:
    """Without images, the weight's dtype is that of the source, too."""
    warm_up("cpu", hidden=16, dtype=BF16, weight_dtype=F32)
    at_start = loaded()
    ids, out = torch.zeros(5, dtype=torch.int64), poisoned(5, 16, dtype=BF16)
    with torch.no_grad():
        embed_tokens(ids, make_rows(9, 16, F32), [], [], out=out)
    assert loaded() == at_start


def test_warm_up_a_second_time_compiles_nothing() -> None:
    warm_up("cpu", hidden=16)
    functions = [kernel._function for kernel, _ in KERNELS]
    num_compiled = [len(function.compiled) for function in functions]
    assert min(num_compiled) > 0
    warm_up("cpu", hidden=16)
    assert [len(function.compiled) for function in functions] == num_compiled
    assert all(compiled.is_loaded for function in functions for compiled, _ in function.compiled)
    assert not any(function.direct or function.bound for function in functions)


def test_warm_up_without_kernels_checks_its_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: False)
    warm_up("cpu", hidden=16)
    assert loaded() == set()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden": 0}, ValueError, "hidden is 0, it must be at least 1"),
        ({"hidden": True}, TypeError, "hidden must be an int, got True"),
        ({"hidden": 8.0}, TypeError, "hidden must be an int, got 8.0"),
        ({"hidden": 8, "levels": -1}, ValueError, "levels is -1, it must be at least 0"),
        ({"hidden": 8, "levels": False}, TypeError, "levels must be an int, got False"),
        ({"hidden": 8, "dtype": torch.int8}, TypeError, "dtype has torch.int8"),
        ({"hidden": 8, "source_dtypes": [torch.float64]}, TypeError, "source_dtypes has torch.float64"),
        ({"hidden": 8, "source_dtypes": torch.float32}, TypeError, "source_dtypes must be a list"),
        ({"hidden": 8, "weight_dtype": torch.int8}, TypeError, "weight_dtype has torch.int8"),
        ({"hidden": 8, "weight_dtype": np.zeros(2)}, TypeError, r"weight_dtype has array\(\[0., 0.\]\)"),
        ({"hidden": 8, "store_dtype": "bfloat16"}, TypeError, "store_dtype has 'bfloat16'"),
        ({"hidden": 8, "scale": 2.0}, TypeError, "scale must be a bool, got 2.0"),
        ({"hidden": 8, "store": 1}, TypeError, "store must be a bool, got 1"),
        ({"hidden": 8, "narrow": 1}, TypeError, "narrow must be a bool, got 1"),
        ({"hidden": 8, "level_forms": "list"}, TypeError, "level_forms must be a list of names, got 'list'"),
        ({"hidden": 8, "level_forms": 3}, TypeError, "level_forms must be a list of names, got 3"),
        (
            {"hidden": 8, "level_forms": ["rows"]},
            ValueError,
            "level_forms has .rows., it must be one",
        ),
        ({"hidden": 8, "device": "meta"}, ValueError, "device is meta"),
    ],
)
def test_warm_up_with_a_wrong_argument_raises_and_loads_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        warm_up(**{"device": "cpu", **arguments})
    assert loaded() == set()


def test_table_warm_up_with_wrong_arguments_raises() -> None:
    table, out = PlacementTable(4, device="cpu"), poisoned(3, 16, dtype=BF16)
    assert table.warm_up(out) is table
    assert out.isnan().all()
    for arguments, error, message in (
        ({"inputs_embeds": out.to("meta")}, ValueError, "the table is on cpu, the destination is on meta"),
        ({"inputs_embeds": None}, TypeError, "inputs_embeds must be a tensor, got NoneType"),
        ({"inputs_embeds": out, "scale": True}, TypeError, "scale must be a real number"),
        ({"inputs_embeds": out, "text_scale": "2"}, TypeError, "text_scale must be a real number"),
        ({"inputs_embeds": out, "weight": torch.zeros(2, 16, dtype=torch.int8)}, TypeError, "weight is"),
        ({"inputs_embeds": out, "weight": 3}, TypeError, "weight must be a tensor or None, got int"),
        ({"inputs_embeds": out, "weight": out[:, :8]}, ValueError, r"weight has shape \(3, 8\), .*\(V, 16\)"),
        ({"inputs_embeds": out, "weight": out[0]}, ValueError, r"weight has shape \(16,\), .*\(V, 16\)"),
        ({"inputs_embeds": out, "deepstack": out.float()}, TypeError, "deepstack is torch.float32"),
    ):
        with pytest.raises(error, match=message):
            table.warm_up(**arguments)  # type: ignore[arg-type]


def variant_of_gpu() -> Variant:
    variants = kernel_variants.scatter_variants(
        torch.device("cpu"), 16, BF16, (BF16,), (None,), (False,), (True,)
    )
    return next(variants)._replace(device=0)


def test_launch_during_a_capture_raises_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_variants, "is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match=r"call PlacementTable\.warm_up or vitcache\.warm_up before"):
        scatter_kernel.launch(variant_of_gpu(), (1, 1, 1), (0,) * len(SCATTER_ARGUMENTS))
    assert loaded() == set()


def test_load_runs_in_the_relaxed_capture_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the default mode, the load of a module breaks the capture of another thread."""
    events: list[str] = []

    @contextmanager
    def relaxed() -> Iterator[None]:
        events.append("relaxed")
        yield
        events.append("restored")

    monkeypatch.setattr(kernel_variants, "is_capturing", lambda device: False)
    monkeypatch.setattr(kernel_variants, "relaxed_capture_mode", relaxed)
    function = scatter_kernel._function
    compile_kernel = function.warmup
    function.warmup = lambda *a, **k: (events.append("compiled"), compile_kernel(*a, **k))[1]
    scatter_kernel.load(variant_of_gpu())
    scatter_kernel.load(variant_of_gpu())
    assert events == ["relaxed", "compiled", "restored"]


def test_warm_up_numbers_that_no_kernel_takes_are_refused():
    for name in ("hidden", "levels"):
        with pytest.raises(ValueError, match=rf"^{name} is .*, it must be at most 2147483647$"):
            warm_up("cpu", **{"hidden": 8, name: 10**400})
