"""The row kernels with every form of deepstack levels and with narrow rows, against the reference."""

import pytest
import torch
from caches import make_cache
from deepstack_forms import FORMS, make_levels, run_scene, scenes, written_levels
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import FLOAT_DTYPES, make_rows, poisoned, same_bits

from vitcache import PlacementTable, Span, embed_tokens, scatter_embeddings
from vitcache.placement import dispatch, reference
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement

pytestmark = pytest.mark.triton

gpu_kernels = pytest.importorskip("vitcache.placement.gpu_kernels")
kernel_variants = pytest.importorskip("vitcache.placement.kernel_variants")


@pytest.fixture
def device(kernel_device):
    return kernel_device


@pytest.fixture(autouse=True)
def on_kernels(monkeypatch):
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)


@pytest.fixture
def launches(monkeypatch):
    """The variants of all launches."""
    variants = []
    for kernel in (kernel_variants.scatter_kernel, kernel_variants.embed_kernel):

        def record(variant, *rest, run=kernel.launch):
            variants.append(variant)
            run(variant, *rest)

        monkeypatch.setattr(kernel, "launch", record)
    return variants


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_every_form_on_kernels_equals_loops_over_rows(scene):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "uses_kernels", lambda device: True)
        run_scene(**scene)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_embed", [False, True], ids=["scatter", "embed"])
def test_every_form_needs_one_launch_per_source_dtype(device, launches, form, is_embed):
    items = [make_rows(2, 4 * 16, dtype, device) for dtype in (torch.bfloat16, torch.float32, torch.bfloat16)]
    argument = make_levels(form, (9,), 16, 3, 6, torch.bfloat16, device)
    weight, ids = make_rows(5, 16, torch.bfloat16, device), torch.zeros(9, dtype=torch.int64, device=device)
    if is_embed:
        embed_tokens(ids, weight, items, [0, 2, 7], **argument)
    else:
        scatter_embeddings(weight[ids], items, [0, 2, 7], **argument)
    assert {variant.source for variant in launches} == {torch.bfloat16, torch.float32}
    assert len(launches) == 2
    is_list, is_packed = form in ("list", "strided list"), form == "packed"
    assert all(variant.form == (is_list, is_packed, False) for variant in launches)


def test_calls_without_narrow_items_or_levels_launch_the_plain_variant(device, launches):
    rows = make_rows(2, 16, torch.bfloat16, device)
    out = poisoned(5, 16, dtype=torch.bfloat16, device=device)
    for levels in (None, [], torch.empty(0, 5, 16, dtype=torch.bfloat16, device=device)):
        scatter_embeddings(out, [rows], [1], deepstack=levels)
    packed = torch.empty(0, 2, 16, dtype=torch.bfloat16, device=device)
    scatter_embeddings(out, [rows], [1], deepstack_rows=packed)
    placed = Placement(Destination("out", out, None), [rows], [1], accepts_narrow=True)
    gpu_kernels.scatter_rows(Destination("out", out, None), placed, None)
    assert len(launches) == 5
    assert len(set(launches)) == 1
    assert launches[0].form == (False, False, False)


@st.composite
def narrow_scenes(draw):
    hidden = draw(st.sampled_from([1, 5, 8]))
    num_levels = draw(st.integers(1, 3))
    num_items = draw(st.integers(1, 4))
    items = []
    for _ in range(num_items):
        padding = draw(st.integers(0, 3))
        width = hidden * (1 + draw(st.sampled_from([0, num_levels])))
        rows = make_rows(draw(st.integers(1, 4)), width + padding, draw(st.sampled_from(FLOAT_DTYPES)))
        items.append(rows[:, padding:])
    return {
        "form": draw(st.sampled_from(FORMS)),
        "hidden": hidden,
        "num_levels": num_levels,
        "items": items,
        "order": draw(st.permutations(range(num_items))),
        "stored": draw(st.lists(st.booleans(), min_size=num_items, max_size=num_items)),
        "store_dtype": draw(st.sampled_from(FLOAT_DTYPES)),
        "dtype": draw(st.sampled_from(FLOAT_DTYPES)),
        "scale": draw(st.sampled_from([None, -0.37, float("inf")])),
        "is_embed": draw(st.booleans()),
    }


def run_narrow_scene(
    on_kernels, device, form, hidden, num_levels, items, order, stored, store_dtype, dtype, scale, is_embed
):
    """Run a call on the kernels or with the reference; return all memory that it wrote."""
    spans, token, num_placed = [None] * len(items), 1, 0
    for item in order:
        length = len(items[item]) - (item == 0)  # a row of item 0 is not placed
        spans[item] = [Span(token, length, int(item == 0))]
        token, num_placed = token + length + item % 2, num_placed + length
    num_tokens = token + 2
    argument = make_levels(form, (num_tokens,), hidden, num_levels, num_placed, dtype, device)
    out = poisoned(num_tokens, hidden, dtype=dtype, device=device)
    destination = Destination("out", out, argument.get("deepstack"), argument.get("deepstack_rows"))
    caches = {
        width: make_cache(12, width=width, dtype=store_dtype, page_rows=3, device=device)
        for width in {rows.shape[1] for rows in items}
    }
    store = [
        caches[rows.shape[1]].reserve(bytes([number]) * 32, len(rows)) if is_stored else None
        for number, (rows, is_stored) in enumerate(zip(items, stored, strict=True))
    ]
    pages = [page for reservation in store if reservation for page in reservation.segments()]
    for page in pages:
        page.fill_(float("nan"))
    moved = [rows.to(device) for rows in items]
    placed = Placement(destination, moved, spans, store, accepts_narrow=True)
    torch.manual_seed(1)
    weight, ids = make_rows(7, hidden, dtype, device), torch.randint(0, 7, (num_tokens,)).to(device)
    if on_kernels and is_embed:
        gpu_kernels.embed_rows(destination, ids, weight, placed, scale, None)
    elif on_kernels:
        gpu_kernels.scatter_rows(destination, placed, scale)
    else:
        placed.write_stores()
        rows = destination.planes[1:], placed.segments(), placed.runs()
        is_packed = form == "packed"
        if is_embed:
            reference.embed_tokens(out, rows[0], ids, weight, *rows[1:], scale, None, is_packed=is_packed)
        else:
            reference.scatter_embeddings(out, *rows, scale, is_packed=is_packed)
    written = [out, *written_levels(form, argument, hidden), *(page.clone() for page in pages)]
    for reservation in store:
        if reservation:
            reservation.cancel()
    return written


@settings(max_examples=60, deadline=None)
@given(narrow_scenes())
def test_narrow_and_wide_rows_equal_the_reference(scene):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    by_kernels, expected = (run_narrow_scene(is_kernel, device, **scene) for is_kernel in (True, False))
    for got, wanted in zip(by_kernels, expected, strict=True):
        assert same_bits(got.contiguous(), wanted.contiguous())


def test_narrow_and_wide_rows_need_one_launch_per_source_dtype(device, launches):
    items = [make_rows(2, width, torch.bfloat16, device) for width in (16, 48, 16)]
    levels = poisoned(2, 9, 16, dtype=torch.bfloat16, device=device)
    destination = Destination("out", poisoned(9, 16, dtype=torch.bfloat16, device=device), levels)
    gpu_kernels.scatter_rows(destination, Placement(destination, items, [0, 3, 6], accepts_narrow=True), None)
    assert [variant.form for variant in launches] == [(False, False, True)]
    assert (levels[:, [0, 1, 6, 7]] == 0).all()


def test_narrow_rows_at_the_end_of_memory_are_not_read_beyond_it(device):
    """The columns behind a narrow row are those of another row here, and must not be placed."""
    rows = make_rows(4, 16, torch.bfloat16, device)
    levels = poisoned(2, 4, 16, dtype=torch.bfloat16, device=device)
    destination = Destination("out", poisoned(4, 16, dtype=torch.bfloat16, device=device), levels)
    gpu_kernels.scatter_rows(destination, Placement(destination, [rows[:2]], [0], accepts_narrow=True), None)
    assert same_bits(destination.rows[:2], rows[:2])
    assert (levels[:, :2] == 0).all()
    assert levels[:, 2:].isnan().all()


@pytest.mark.parametrize("form", ["levels", "columns", "list", "strided list"])
def test_placement_table_on_kernels_takes_every_form(device, form):
    hidden = 8
    rows = make_rows(3, 3 * hidden, torch.bfloat16, device)
    table = PlacementTable(9, dtype=torch.bfloat16, device=device).update([rows], [2])
    weight, ids = (
        make_rows(5, hidden, torch.bfloat16, device),
        torch.zeros(9, dtype=torch.int64, device=device),
    )
    for is_embed in (False, True):
        argument = make_levels(form, (9,), hidden, 2, 3, torch.bfloat16, device)
        if is_embed:
            out = embed_tokens(ids, weight, table, None, **argument)
        else:
            out = poisoned(9, hidden, dtype=torch.bfloat16, device=device)
            scatter_embeddings(out, table, None, **argument)
        planes = [out, *written_levels(form, argument, hidden)]
        for plane, columns in zip(planes, rows.split(hidden, dim=1), strict=True):
            assert same_bits(plane[2:5].contiguous(), columns.contiguous())
        for plane in planes[1:]:
            others = plane[[0, 1, 5, 8]]
            assert (others == 0).all() if is_embed else others.isnan().all()


def test_placement_table_keeps_the_level_tables_of_captured_calls(device, monkeypatch):
    monkeypatch.setattr(gpu_kernels, "is_capturing", lambda device: True)
    hidden = 8
    rows = make_rows(1, 3 * hidden, torch.float32, device)
    table = PlacementTable(4, dtype=torch.float32, device=device).update([rows], [2])
    addresses = []
    for _ in range(2):
        argument = make_levels("list", (4,), hidden, 2, 1, torch.float32, device)
        destination = Destination("out", poisoned(4, hidden, dtype=torch.float32, device=device), **argument)
        for _ in range(2):
            gpu_kernels.scatter_table(destination, table, None)
            addresses.append(table.level_address(destination))
        planes = destination.planes
        assert same_bits(torch.cat([plane[2:3] for plane in planes], dim=1), rows)
    assert addresses[0] == addresses[1] != addresses[2] == addresses[3]
    monkeypatch.setattr("vitcache.placement.placement_table.LEVEL_VALUES", 9)
    argument = make_levels("list", (4,), hidden, 2, 1, torch.float32, device)
    destination = Destination("out", destination.rows, **argument)
    with pytest.raises(RuntimeError, match=r"has memory for 4 deepstack levels .* the captures need 6"):
        gpu_kernels.scatter_table(destination, table, None)
