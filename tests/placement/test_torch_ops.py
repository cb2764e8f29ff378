"""The operators of torch.library: schemas, fake implementations, compilation, gradients."""

import numpy as np
import pytest
import torch
from caches import make_cache
from placement_cases import make_rows, same_bits

from vitcache import Span, embed_tokens, scatter_embeddings

HIDDEN = 16
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def arguments(device, deepstack_levels):
    width = HIDDEN * (1 + deepstack_levels)
    deepstack = torch.zeros(deepstack_levels, 9, HIDDEN, device=device) if deepstack_levels else None
    items = [make_rows(3, width, torch.float32, device), make_rows(4, width, torch.float32, device)]
    runs = torch.tensor([[0, 1, 3, 0], [1, 5, 2, 2]])
    return torch.zeros(9, HIDDEN, device=device), deepstack, items, runs


@pytest.mark.parametrize("levels", [0, 2])
def test_operators_pass_opcheck(device, levels):
    out, deepstack, items, runs = arguments(device, levels)
    ids, weight = (
        torch.zeros(9, dtype=torch.int64, device=device),
        make_rows(5, HIDDEN, torch.float32, device),
    )
    ops = torch.ops.vitcache
    for operator, values in [
        (ops.scatter_embeddings_, (out, deepstack, items, runs, 0.5)),
        (ops.embed_tokens_, (out, deepstack, ids, weight, items, runs, None, 2.0)),
        (ops.gather_rows, (out, runs, [3, 4], 0.5)),
        (ops.clear_rows_, (out, runs)),
    ]:
        torch.library.opcheck(operator.default, values, test_utils=CHECKS)


def test_operator_called_with_a_gradient_is_refused(device):
    out, _, items, runs = arguments(device, 0)
    items[0].requires_grad_()
    with pytest.raises(RuntimeError, match="has no gradient: call the function of vitcache"):
        torch.ops.vitcache.scatter_embeddings_(out, None, items, runs, None)


def test_operator_bad_runs_are_refused_at_run_time(device):
    out, _, items, runs = arguments(device, 0)
    runs[1, 1] = 8
    with pytest.raises(IndexError, match=r"item 1 \(tokens \[8, 10\)\) does not fit in 9 tokens"):
        torch.ops.vitcache.scatter_embeddings_(out, None, items, runs, None)
    with pytest.raises(ValueError, match="names item 2, the number of items is 2"):
        torch.ops.vitcache.scatter_embeddings_(out, None, items, torch.tensor([[2, 0, 1, 0]]), None)


@pytest.fixture
def compiled():
    """Compile a function to one graph with backend aot_eager: the tests check the graph, not Inductor."""
    torch._dynamo.reset()
    return lambda function: torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)


def test_compiled_forward_without_graph_breaks_equals_eager(device, compiled):
    def forward(ids, weight, first, second):
        out = embed_tokens(ids, weight, [first, second], [Span(1, 2), [Span(4, 1, 1)]])
        scatter_embeddings(out, [first], [6], scale=0.5)
        return out * 2

    run = compiled(forward)
    weight = make_rows(5, HIDDEN, torch.bfloat16, device)
    for num_tokens in (9, 12, 31):
        ids = torch.randint(0, 5, (num_tokens,), device=device)
        items = [make_rows(2, HIDDEN, torch.bfloat16, device) for _ in range(2)]
        with torch.no_grad():
            assert same_bits(run(ids, weight, *items), forward(ids, weight, *items))


def test_compiled_packed_scatter_does_not_recompile_as_counts_change(device, compiled):
    def forward(out, rows, spans):
        scatter_embeddings(out, rows, spans)
        return out + 1

    run = compiled(forward)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        # The first count differs from 3. Otherwise Dynamo would unify it with the 3 columns.
        for count in (4, 2, 5, 8):
            rows = make_rows(2 * count, HIDDEN, torch.float32, device)
            spans = np.array([[3 * i, 2, 2 * i] for i in range(count)])
            out = torch.full((30 + count, HIDDEN), float("nan"), device=device)
            expected = scatter_embeddings(out.clone(), rows, spans) + 1
            assert same_bits(run(out, rows, torch.from_numpy(spans)), expected)
            assert int(out.isnan().all(dim=1).sum()) == 30 + count - 2 * count


def test_compiled_scatter_with_lease_is_refused(device):
    cache = make_cache(width=HIDDEN, page_rows=4, device=device)
    cache.put(bytes(32), make_rows(3, HIDDEN, torch.float32, device))
    with cache.get(bytes(32)) as lease:
        run = torch.compile(lambda out: scatter_embeddings(out, [lease], [0]), backend="eager")
        with pytest.raises(TypeError, match="item 0 must be a tensor in a compiled call, got Lease"):
            run(torch.zeros(4, HIDDEN, device=device))


def test_compiled_scatter_gradients_equal_eager(device, compiled):
    def forward(base, rows, deepstack):
        out = base * 2
        levels = deepstack * 1
        scatter_embeddings(out, [rows], [Span(2, 3, 1)], deepstack=levels)
        return (out.sin() + levels.sum(0).cos()).sum()

    run = compiled(forward)
    values = [torch.randn(8, HIDDEN), torch.randn(5, 3 * HIDDEN), torch.randn(2, 8, HIDDEN)]
    eager = [value.to(device).requires_grad_() for value in values]
    traced = [value.to(device).requires_grad_() for value in values]
    forward(*eager).backward()
    run(*traced).backward()
    for wanted, got in zip(eager, traced, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_compiled_embed_tokens_gradients_equal_eager(device, compiled):
    def forward(ids, weight, rows):
        return embed_tokens(ids, weight, [rows], [Span(2, 3, 1)]).sin().sum()

    run = compiled(forward)
    ids = torch.randint(0, 6, (8,), device=device)
    values = [torch.randn(6, HIDDEN), torch.randn(5, HIDDEN)]
    eager = [value.to(device).requires_grad_() for value in values]
    traced = [value.to(device).requires_grad_() for value in values]
    forward(ids, *eager).backward()
    run(ids, *traced).backward()
    for wanted, got in zip(eager, traced, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)
