"""The forms of deepstack levels: results against loops over rows, errors, gradients and compiled calls."""

import pytest
import torch
from caches import make_cache
from deepstack_forms import FORMS, expected_levels, make_levels, run_scene, scenes, written_levels
from hypothesis import given, settings
from placement_cases import expected_scatter, make_rows, poisoned, same_bits

from vitcache import PlacementTable, Span, embed_tokens, scatter_embeddings
from vitcache.placement.destination import Destination

HIDDEN, LEVELS, TOKENS = 6, 3, 12
WIDTH = HIDDEN * (1 + LEVELS)
SPANS = [[Span(8, 2, 1), Span(1, 1, 0)], 4]  # not in token order
PLACED = torch.tensor([token in (1, 4, 5, 8, 9) for token in range(TOKENS)])


def make_call(form, tokens=(TOKENS,), device="cpu", dtype=torch.float32):
    out = poisoned(*tokens, HIDDEN, dtype=dtype, device=device)
    return out, make_levels(form, tokens, HIDDEN, LEVELS, int(PLACED.sum()), dtype, device)


@settings(deadline=None)
@given(scenes())
def test_every_form_equals_loops_over_rows(scene):
    run_scene(**scene)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_with_leases_of_the_native_path_equals_loops_over_rows(device, form):
    cache = make_cache(8, width=WIDTH, page_rows=2, device=device)
    rows = make_rows(3, WIDTH, torch.float32, device)
    assert cache.put(bytes(32), rows)
    items = [cache.get(bytes(32)), make_rows(2, WIDTH, torch.float32, device)]
    out, argument = make_call(form, device=device)
    levels = poisoned(LEVELS, TOKENS, HIDDEN, dtype=torch.float32)
    expected = expected_scatter(out.cpu(), [rows.cpu(), items[1].cpu()], SPANS, levels)
    scatter_embeddings(out, items, SPANS, **argument)
    assert same_bits(out.cpu(), expected[0])
    for got, wanted in zip(
        written_levels(form, argument, HIDDEN), expected_levels(form, expected[1], PLACED), strict=True
    ):
        assert same_bits(got.cpu().contiguous(), wanted.contiguous())


@pytest.mark.parametrize("form", ["strided list", "packed"])
def test_long_rows_are_written_by_several_threads(form, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    hidden, num_rows = 4096, 500
    rows, spans = make_rows(num_rows, 3 * hidden, torch.float32), [Span(400, 100, 300), Span(7, 300)]
    placed = torch.zeros(510, dtype=torch.bool)
    placed[7:307] = placed[400:500] = True
    for is_embed in (False, True):
        argument = make_levels(form, (510,), hidden, 2, 400, torch.float32)
        if is_embed:
            embed_tokens(torch.zeros(510, dtype=torch.int64), rows[:1, :hidden], [rows], [spans], **argument)
        else:
            scatter_embeddings(torch.zeros(510, hidden), [rows], [spans], **argument)
        levels = torch.zeros(2, 510, hidden) if is_embed else poisoned(2, 510, hidden, dtype=torch.float32)
        for level in range(2):
            columns = rows[:, hidden * (level + 1) : hidden * (level + 2)]
            levels[level, 7:307], levels[level, 400:500] = columns[:300], columns[300:400]
        for got, wanted in zip(
            written_levels(form, argument, hidden), expected_levels(form, levels, placed), strict=True
        ):
            assert same_bits(got.contiguous(), wanted.contiguous())


def test_columns_of_one_level_in_a_batch_are_not_levels():
    out, level = torch.zeros(2, 5, HIDDEN), poisoned(2, 5, HIDDEN, dtype=torch.float32)
    rows = make_rows(3, 2 * HIDDEN, torch.float32)
    scatter_embeddings(out, [rows], [4], deepstack=level)
    assert same_bits(level.view(10, HIDDEN)[4:7], rows[:, HIDDEN:].contiguous())
    assert Destination("out", out, level).levels == 1
    assert Destination("out", out[:1], level[:1]).levels == 1


def test_no_levels_in_a_form_means_rows_without_deepstack_columns():
    rows = make_rows(2, HIDDEN, torch.float32)
    for argument in (
        {"deepstack": []},
        {"deepstack": torch.empty(0, TOKENS, HIDDEN)},
        {"deepstack": torch.empty(TOKENS, 0)},
        {"deepstack_rows": torch.empty(0, 2, HIDDEN)},
    ):
        out = poisoned(TOKENS, HIDDEN, dtype=torch.float32)
        assert same_bits(scatter_embeddings(out, [rows], [1], **argument)[1:3], rows)
        with pytest.raises(ValueError, match="width 12, the destination takes 6"):
            scatter_embeddings(out, [make_rows(2, 12, torch.float32)], [1], **argument)
    with pytest.raises(ValueError, match="has 3 rows a level, the call places rows at 2 tokens"):
        scatter_embeddings(out, [rows], [1], deepstack_rows=torch.empty(0, 3, HIDDEN))


def level(*shape, **options):
    return poisoned(*(shape or (TOKENS, HIDDEN)), **{"dtype": torch.float32, **options})


MEMORY = level(40 * HIDDEN)
BAD_LEVELS = [
    (TypeError, "deepstack must be a tensor or a list of tensors, got int", {"deepstack": 3}),
    (TypeError, r"deepstack\[1\] must be a tensor, got NoneType", {"deepstack": [level(), None, level()]}),
    (TypeError, r"deepstack\[2\] is torch.float16", {"deepstack": [level(), level(), level().half()]}),
    (TypeError, r"deepstack\[0\] is a torch.sparse_coo", {"deepstack": [torch.zeros(12, 6).to_sparse()] * 3}),
    (ValueError, r"deepstack\[0\] is on meta", {"deepstack": [level(device="meta")] * 3}),
    (
        ValueError,
        r"deepstack\[1\] has shape \(11, 6\), it must be \(12, 6\)",
        {"deepstack": [level(), level(11, 6), level()]},
    ),
    (ValueError, r"deepstack\[0\] has stride 2 between", {"deepstack": [level(12, 12)[:, ::2]] * 3}),
    (
        ValueError,
        r"deepstack\[0\] has stride 5 between rows",
        {"deepstack": [MEMORY.as_strided((12, 6), (5, 1))]},
    ),
    (ValueError, "width 24, the destination takes 18", {"deepstack": [level(), level()]}),
    (ValueError, "width 24, the destination takes 30", {"deepstack": [level() for _ in range(4)]}),
    (ValueError, "width 24, the destination takes 30", {"deepstack": level(TOKENS, 4 * HIDDEN)}),
    (ValueError, r"deepstack has shape \(12, 17\), it must be", {"deepstack": level(TOKENS, 17)}),
    (ValueError, r"deepstack has shape \(11, 18\), it must be", {"deepstack": level(11, 18)}),
    (
        ValueError,
        "deepstack levels 0 and 2 share memory",
        {"deepstack": [MEMORY[:72].view(12, 6), level(), MEMORY[6:78].view(12, 6)]},
    ),
    (ValueError, "deepstack has stride 2 between elements", {"deepstack": level(TOKENS, 6 * HIDDEN)[:, ::2]}),
    (
        ValueError,
        "deepstack levels 0 and 2 share memory",
        {"deepstack": MEMORY.as_strided((12, 18), (12, 1))},
    ),
    (TypeError, "deepstack_rows must be a tensor, got list", {"deepstack_rows": [level(5, 6)] * 3}),
    (TypeError, "deepstack_rows is torch.bfloat16", {"deepstack_rows": level(3, 5, 6, dtype=torch.bfloat16)}),
    (ValueError, "deepstack_rows is on meta", {"deepstack_rows": level(3, 5, 6, device="meta")}),
    (
        ValueError,
        r"deepstack_rows has shape \(3, 5, 7\), it must be \(L, N, 6\)",
        {"deepstack_rows": level(3, 5, 7)},
    ),
    (ValueError, r"deepstack_rows has shape \(15, 6\), it must be", {"deepstack_rows": level(15, 6)}),
    (ValueError, "deepstack_rows has stride 2", {"deepstack_rows": level(3, 5, 12)[..., ::2]}),
    (
        ValueError,
        "deepstack_rows has 4 rows a level, the call places rows at 5 tokens",
        {"deepstack_rows": level(3, 4, 6)},
    ),
    (
        ValueError,
        "deepstack_rows has 12 rows a level, the call places rows at 5 tokens",
        {"deepstack_rows": level(3, 12, 6)},
    ),
    (
        ValueError,
        "deepstack_rows levels 0 and 1 share memory",
        {"deepstack_rows": MEMORY[:30].view(1, 5, 6).expand(3, 5, 6)},
    ),
    (ValueError, "width 24, the destination takes 18", {"deepstack_rows": level(2, 5, 6)}),
    (
        ValueError,
        "deepstack and deepstack_rows exclude each other",
        {"deepstack": level(3, 12, 6), "deepstack_rows": level(3, 5, 6)},
    ),
]


@pytest.mark.parametrize(
    ("error", "message", "argument"), BAD_LEVELS, ids=[str(n) for n in range(len(BAD_LEVELS))]
)
def test_bad_levels_are_refused_and_nothing_is_written(error, message, argument):
    items = [make_rows(n, WIDTH, torch.float32) for n in (3, 2)]
    out, weight = level(), make_rows(5, HIDDEN, torch.float32)
    with pytest.raises(error, match=message):
        scatter_embeddings(out, items, SPANS, **argument)
    with pytest.raises(error, match=message):
        embed_tokens(torch.zeros(TOKENS, dtype=torch.int64), weight, items, SPANS, out=out, **argument)
    for value in argument.values():
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and not tensor.is_sparse:
                assert tensor.isnan().all()
    assert out.isnan().all()


@pytest.mark.parametrize("form", FORMS)
def test_levels_that_share_memory_with_another_argument_are_refused(form):
    rows = make_rows(3, WIDTH, torch.float32)
    out, argument = make_call(form)
    ids, weight = torch.zeros(TOKENS, dtype=torch.int64), make_rows(5, HIDDEN, torch.float32)
    last = written_levels(form, argument, HIDDEN)[-1]
    label = "deepstack_rows" if form == "packed" else "deepstack"
    if form in ("levels", "list", "packed", "strided list"):  # reshape made a view: the memory of the level
        inner = last[: TOKENS - 3]
        with pytest.raises(ValueError, match="weight shares memory with the destination"):
            embed_tokens(ids, inner, [rows], [1], **argument)
        wide = last.as_strided((1, WIDTH), (WIDTH, 1), last.storage_offset())
        with pytest.raises(ValueError, match="item 1 shares memory with the destination"):
            scatter_embeddings(out, [rows, wide, rows[:1]], [1, 6, 8], **argument)
        with pytest.raises(ValueError, match=f"{label} shares memory with inputs_embeds"):
            scatter_embeddings(last, [rows, rows[:2]], [0, 3], **argument)
    assert out.isnan().all()
    assert last.isnan().all()
    assert not weight.isnan().any()


@pytest.mark.parametrize("form", FORMS)
def test_placement_table_takes_every_form_but_packed_levels(form):
    items = [make_rows(n, WIDTH, torch.float32) for n in (3, 2)]
    table = PlacementTable(TOKENS, dtype=torch.float32, device="cpu").update(items, SPANS)
    out, argument = make_call(form)
    ids, weight = torch.zeros(TOKENS, dtype=torch.int64), make_rows(5, HIDDEN, torch.float32)
    if form == "packed":
        with pytest.raises(ValueError, match="deepstack_rows cannot be combined with a PlacementTable"):
            scatter_embeddings(out, table, None, **argument)
        with pytest.raises(ValueError, match="deepstack_rows cannot be combined with a PlacementTable"):
            embed_tokens(ids, weight, table, None, out=out, **argument)
        assert out.isnan().all()
        assert argument["deepstack_rows"].isnan().all()
        return
    levels = poisoned(LEVELS, TOKENS, HIDDEN, dtype=torch.float32)
    expected = expected_scatter(out, items, SPANS, levels)
    scatter_embeddings(out, table, None, **argument)
    assert same_bits(out, expected[0])
    for got, wanted in zip(written_levels(form, argument, HIDDEN), expected[1], strict=True):
        assert same_bits(got.contiguous(), wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_embed", [False, True], ids=["scatter", "embed"])
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_gradients_of_every_form_equal_those_of_levels(form, is_embed, is_compiled):
    torch._dynamo.reset()
    ids = torch.randint(0, 5, (TOKENS,))
    values = [
        make_rows(5, HIDDEN, torch.float32),
        make_rows(3, WIDTH, torch.float32),
        make_rows(2, WIDTH, torch.float32),
    ]
    factors = torch.randn(LEVELS, TOKENS, HIDDEN)

    def forward(kind, weight, first, second):
        argument = make_levels(kind, (TOKENS,), HIDDEN, LEVELS, int(PLACED.sum()), torch.float32)
        if is_embed:
            out = embed_tokens(ids, weight, [first, second], SPANS, scale=0.5, **argument)
        else:
            out = scatter_embeddings(weight[ids], [first, second], SPANS, scale=0.5, **argument)
        wanted = expected_levels(kind, factors, PLACED)
        levels = written_levels(kind, argument, HIDDEN)
        return out.sin().sum() + sum(
            (got.nan_to_num() * factor).sum() for got, factor in zip(levels, wanted, strict=True)
        )

    results = []
    for kind in ("levels", form):
        leaves = [value.clone().requires_grad_() for value in values]
        run = torch.compile(forward, backend="aot_eager") if is_compiled and kind == form else forward
        total = run(kind, *leaves)
        total.backward()
        results.append([total.detach(), *(leaf.grad for leaf in leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("form", [*FORMS, "slices"])
@pytest.mark.parametrize("is_embed", [False, True], ids=["scatter", "embed"])
def test_compiled_calls_keep_the_gradients_of_tensors_of_the_caller(form, is_embed):
    """The caller reads them after the compiled function, which returns none of them."""
    torch._dynamo.reset()
    ids, weight = torch.zeros(TOKENS, dtype=torch.int64), torch.zeros(1, HIDDEN)

    def forward(rows, out, argument):
        if form == "slices":
            columns = argument["deepstack"]
            argument = {"deepstack": [columns[:, :HIDDEN], columns[:, HIDDEN:]]}
        if is_embed:
            return embed_tokens(ids, weight, [rows], [4], **argument).sum()
        scatter_embeddings(out, [rows], [4], **argument)
        return rows.sum() * 0

    rows, out = torch.ones(3, 3 * HIDDEN, requires_grad=True), torch.zeros(TOKENS, HIDDEN)
    kind = "columns" if form == "slices" else form
    argument = make_levels(kind, (TOKENS,), HIDDEN, 2, 3, torch.float32)
    total = torch.compile(forward, fullgraph=True, backend="aot_eager")(rows, out, argument) + out.sum()
    for level in written_levels(kind, argument, HIDDEN):
        total = total + level.nan_to_num().sum()
    total.backward()
    assert torch.equal(rows.grad, torch.ones_like(rows))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [(TOKENS,), (2, TOKENS // 2)], ids=["tokens", "batch"])
def test_compiled_calls_of_every_form_equal_eager(form, tokens):
    torch._dynamo.reset()
    items = [make_rows(n, WIDTH, torch.float32) for n in (3, 2)]
    ids, weight = torch.randint(0, 5, tokens), make_rows(5, HIDDEN, torch.float32)

    def forward(out, argument, is_embed):
        if is_embed:
            return embed_tokens(ids, weight, items, SPANS, **argument) * 2
        return scatter_embeddings(out, items, SPANS, **argument) * 2

    run = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for is_embed in (False, True):
        results = []
        for function in (forward, run):
            out, argument = make_call(form, tokens)
            with torch.no_grad():
                results.append([function(out, argument, is_embed), *written_levels(form, argument, HIDDEN)])
        for eager, compiled in zip(*results, strict=True):
            assert same_bits(compiled.contiguous(), eager.contiguous())


def test_compiled_packed_levels_of_a_wrong_number_of_rows_are_refused():
    torch._dynamo.reset()
    rows = make_rows(3, 2 * HIDDEN, torch.float32)
    run = torch.compile(
        lambda rows, packed: scatter_embeddings(
            torch.zeros(TOKENS, HIDDEN), [rows], [1], deepstack_rows=packed
        ),
        backend="aot_eager",
    )
    message = "has 4 rows a level, the call places rows at 3 tokens"
    for needs_grad in (False, True):
        with pytest.raises(ValueError, match=message):
            run(rows.clone().requires_grad_(needs_grad), torch.zeros(1, 4, HIDDEN))


def test_a_level_whose_version_changed_refuses_backward():
    first, second = torch.zeros(TOKENS, HIDDEN), torch.zeros(TOKENS, HIDDEN)
    loss = (torch.ones(TOKENS, HIDDEN, requires_grad=True) * second).sum()
    scatter_embeddings(
        torch.zeros(TOKENS, HIDDEN), [torch.ones(1, 3 * HIDDEN)], [2], deepstack=[first, second]
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("spans", [[0, True], [[True], 4], [torch.zeros(2).numpy().all(), 4]], ids=str)
def test_a_bool_is_not_a_start(spans):
    out = level()
    with pytest.raises(TypeError, match=r"item [01]: (spans|every span) must be .* (not|got) (numpy\.)?bool"):
        scatter_embeddings(out, [make_rows(2, HIDDEN, torch.float32)] * 2, spans)
    assert out.isnan().all()
