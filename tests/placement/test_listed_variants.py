"""Each public call launches only variants that the `warm_up` lists whose arguments describe the call.

The calls are a pairwise sample of dtypes, forms of the levels, factors, sources of the rows and alignments.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from caches import make_cache
from deepstack_forms import make_levels
from pairwise import all_pairs
from placement_cases import make_rows, poisoned
from torch import Tensor

from vitcache import PlacementTable, Span, embed_tokens, scatter_embeddings, warm_up
from vitcache.placement.destination import Destination
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.placement import Placement
from vitcache.placement.scatter_call import ScatterCall

pytest.importorskip("triton")

from fake_kernels import install, loaded

from vitcache.placement import kernel_variants

pytestmark = pytest.mark.triton

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
HIDDEN, TOKENS, LEVELS = 16, 9, 2


class Call(NamedTuple):
    """A call of `scatter_embeddings`, or of `embed_tokens` with a weight, and the dtype of its cache."""

    kind: str  # "rows", "leases", "store" or "table"
    sources: tuple[torch.dtype, ...]
    target: torch.dtype
    weight: torch.dtype | None
    cached: torch.dtype
    form: str
    is_narrow: bool
    scale: float | None
    text_scale: float | None
    is_shifted: bool

    def valid(self) -> Call:
        """The same call without the properties that its kind or form excludes."""
        call = self
        if call.kind == "table":  # it takes rows of one dtype and no packed levels
            form = "levels" if call.form == "packed" else call.form
            call = call._replace(sources=call.sources[:1], form=form, is_narrow=False)
        if call.kind == "leases":
            call = call._replace(sources=(call.cached,))
        if call.form == "none":
            call = call._replace(is_narrow=False)
        return call._replace(text_scale=None) if call.weight is None else call

    @property
    def warm_up(self) -> dict[str, Any]:
        """The arguments of `warm_up` that a user derives from the call."""
        return {
            "hidden": HIDDEN,
            "dtype": self.target,
            "levels": 0 if self.form == "none" else LEVELS,
            "level_forms": [self.form] if self.form in ("list", "packed") else [],
            "narrow": self.is_narrow,
            "source_dtypes": self.sources,
            "weight_dtype": self.weight,
            "store_dtype": self.cached,
            "scale": self.scale is not None,
            "text_scale": self.text_scale is not None,
            "store": self.kind == "store",
            "table": self.kind == "table",
        }

    def tensor(self, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Random rows; if the call is shifted, no row begins at a multiple of 16 bytes."""
        if not self.is_shifted:
            return make_rows(num_rows, width, dtype)
        return make_rows(num_rows, width + 1, dtype)[:, 1:]

    def levels(self) -> dict[str, Any]:
        if self.form == "none":
            return {"deepstack": None}
        num_rows = 2 * len(self.sources)
        levels = make_levels(self.form, (TOKENS,), HIDDEN, LEVELS, num_rows, self.target)
        return {"deepstack": None, **levels}

    def make(self) -> None:
        """Make the call."""
        out = self.tensor(TOKENS, HIDDEN, self.target)
        ids = torch.zeros(TOKENS, dtype=torch.int64)
        weight = None if self.weight is None else self.tensor(5, HIDDEN, self.weight)
        width = HIDDEN * (1 if self.form == "none" or self.is_narrow else 1 + LEVELS)
        if self.kind == "table":
            table = PlacementTable(TOKENS, dtype=self.sources[0], device="cpu")
            table.update([make_rows(2, width, self.sources[0])], [1])
            factors = {"scale": self.scale, **self.levels()}
            if weight is None:
                scatter_embeddings(out, table, None, **factors)
            else:
                embed_tokens(ids, weight, table, None, out=out, text_scale=self.text_scale, **factors)
            return
        cache = make_cache(16, width=width, dtype=self.cached, page_rows=2)
        rows: list[Any] = [self.tensor(2, width, dtype) for dtype in self.sources]
        keys = [bytes([number]) * 32 for number in range(len(rows))]
        if self.kind == "leases":
            for key, item in zip(keys, rows, strict=True):
                assert cache.put(key, item)
            rows = [cache.get(key) for key in keys]
        store = [cache.reserve(key, 2) for key in keys] if self.kind == "store" else None
        levels = self.levels()
        call = (
            ScatterCall(out, scale=self.scale, **levels)
            if weight is None
            else EmbedCall(ids, weight, out, scale=self.scale, text_scale=self.text_scale, **levels)
        )
        spans = [Span(1 + 3 * number, 2) for number in range(len(rows))]
        # A pipeline accepts narrow rows; the functions do not.
        call.run_placed(Placement(call.destination, rows, spans, store, accepts_narrow=True), store)


CALLS = list(
    dict.fromkeys(
        Call(**case).valid()
        for case in all_pairs(
            kind=("rows", "leases", "store", "table"),
            sources=((F32,), (F16,), (BF16,), (F32, BF16)),
            target=(BF16, F32, F16),
            weight=(None, BF16, F32, F16),
            cached=(BF16, F32, F16),
            form=("none", "levels", "list", "packed"),
            is_narrow=(False, True),
            scale=(None, 0.5),
            text_scale=(None, 2.0),
            is_shifted=(False, True),
        )
    )
)


# The merge of an attached model: leases, or rows of the encoder, into text embeddings, with packed levels.
MERGES = [
    Call(kind, (cached,), target, None, cached, form, False, None, None, False)
    for kind, form, (cached, target) in product(
        ("leases", "rows"), ("packed", "none"), ((BF16, BF16), (F16, F16), (F32, F32), (F32, BF16))
    )
]
CALLS = list(dict.fromkeys(CALLS + MERGES))


@pytest.fixture(autouse=True)
def compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{CALLS.index(call)}-{call.kind}")
def test_call_launches_only_variants_that_its_warm_up_lists(call: Call) -> None:
    warm_up("cpu", **call.warm_up)
    listed = loaded()
    with torch.no_grad():
        call.make()
    assert loaded() == listed, f"{call} loaded {loaded() - listed}"


def test_calls_cover_every_kind_with_a_cache_and_a_weight_of_other_dtypes() -> None:
    for kind in ("rows", "leases", "store", "table"):
        calls = [call for call in CALLS if call.kind == kind]
        assert any(call.weight not in (None, call.target) for call in calls), kind
        assert any(call.cached != call.target for call in calls), kind


@pytest.mark.parametrize("call", [call for call in CALLS if call.kind == "table"])
def test_call_with_a_table_launches_only_variants_that_the_table_lists(call: Call) -> None:
    destination = Destination("out", poisoned(TOKENS, HIDDEN, dtype=call.target), call.levels()["deepstack"])
    weight = call.weight or call.target
    flags = call.scale is not None, call.text_scale is not None
    kernel_variants.load(kernel_variants.table_variants(destination, call.sources[0], weight, *flags))
    listed = loaded()
    with torch.no_grad():
        call.make()
    assert loaded() == listed, f"{call} loaded {loaded() - listed}"
