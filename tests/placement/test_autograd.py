"""Gradients, compared with the gradients of the same placement written as a loop of slices."""

import numpy as np
import pytest
import torch
from placement_cases import as_spans, make_rows

from vitcache import Span, embed_tokens, scatter_embeddings

HIDDEN = 6
SPANS = [[Span(1, 2, 1), Span(8, 1, 0)], 4]


def sliced_scatter(inputs_embeds, items, deepstack=None, scale=None):
    """Place `items` at `SPANS` in differentiable torch. Returns new tensors."""
    out = inputs_embeds.clone().view(-1, HIDDEN)
    levels = None if deepstack is None else deepstack.clone()
    for item, entry in zip(items, SPANS, strict=True):
        for span in as_spans(entry, len(item)):
            rows = item[span.source_start : span.source_start + span.length]
            rows = rows if scale is None else rows * scale
            out[span.start : span.stop] = rows[:, :HIDDEN]
            for level in range(0 if levels is None else len(levels)):
                levels[level, span.start : span.stop] = rows[:, HIDDEN * (level + 1) : HIDDEN * (level + 2)]
    return out.view_as(inputs_embeds), levels


def leaves(*tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("shape", [(10, HIDDEN), (2, 5, HIDDEN)], ids=["tokens", "batch"])
def test_scatter_gradients_equal_those_of_slices(device, scale, shape):
    values = [torch.randn(shape), make_rows(3, HIDDEN, torch.float32), make_rows(2, HIDDEN, torch.float32)]
    values = [value.to(device) for value in values]
    upstream = torch.randn(shape, device=device)
    base, *items = leaves(*values)
    true_base, *true_items = leaves(*values)
    out = scatter_embeddings(base * 1, items, SPANS, scale=scale)
    expected, _ = sliced_scatter(true_base * 1, true_items, scale=scale)
    assert torch.equal(out, expected)
    out.backward(upstream)
    expected.backward(upstream)
    for got, wanted in zip([base, *items], [true_base, *true_items], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_scatter_with_deepstack_gradients_equal_those_of_slices(device):
    values = [
        torch.randn(10, HIDDEN),
        torch.randn(2, 10, HIDDEN),
        torch.randn(3, 3 * HIDDEN),
        torch.randn(2, 3 * HIDDEN),
    ]
    values = [value.to(device) for value in values]
    base, deepstack, *items = leaves(*values)
    true_base, true_deepstack, *true_items = leaves(*values)
    levels = deepstack * 1
    out = scatter_embeddings(base * 1, items, SPANS, deepstack=levels)
    expected, expected_levels = sliced_scatter(true_base * 1, true_items, true_deepstack * 1)
    (out.sin().sum() + levels.cos().sum()).backward()
    (expected.sin().sum() + expected_levels.cos().sum()).backward()
    for got, wanted in zip([base, deepstack, *items], [true_base, true_deepstack, *true_items], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.parametrize("text_scale", [None, 3.0])
def test_embed_tokens_gradients_equal_those_of_embedding_and_slices(device, text_scale):
    ids = torch.randint(0, 9, (10,), device=device)
    masked = ids.clone()
    ids[1:3] = 10**9
    values = [torch.randn(9, HIDDEN), torch.randn(3, HIDDEN), torch.randn(2, HIDDEN)]
    weight, *items = leaves(*(value.to(device) for value in values))
    true_weight, *true_items = leaves(*(value.to(device) for value in values))
    out = embed_tokens(ids, weight, items, SPANS, text_scale=text_scale)
    text = torch.nn.functional.embedding(masked, true_weight)
    expected, _ = sliced_scatter(text if text_scale is None else text * text_scale, true_items)
    assert torch.equal(out, expected)
    out.sin().sum().backward()
    expected.sin().sum().backward()
    for got, wanted in zip([weight, *items], [true_weight, *true_items], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.filterwarnings("ignore:Input #. requires gradient")
def test_both_operations_pass_gradcheck_for_every_argument():
    # float32 is the widest supported dtype. It needs a large step and a loose tolerance.
    ids = torch.randint(0, 9, (10,))
    weight, deepstack, *items = leaves(
        torch.randn(9, HIDDEN),
        torch.randn(2, 10, HIDDEN),
        torch.randn(3, 3 * HIDDEN),
        torch.randn(2, 3 * HIDDEN),
    )

    def embed(weight, *items):
        levels = torch.empty(2, 10, HIDDEN)
        return embed_tokens(ids, weight, items, SPANS, deepstack=levels), levels

    def scatter(base, deepstack, *items):
        levels = deepstack * 1
        return scatter_embeddings(base * 1, items, SPANS, deepstack=levels), levels

    base = torch.randn(10, HIDDEN, requires_grad=True)
    settings = {"eps": 1e-2, "atol": 1e-2, "rtol": 1e-2, "nondet_tol": 0.0}
    assert torch.autograd.gradcheck(embed, (weight, *items), **settings)
    assert torch.autograd.gradcheck(scatter, (base, deepstack, *items), **settings)


def unwritable():
    """Destinations that autograd forbids writing in place, by the words of the error."""
    leaf = torch.zeros(11, HIDDEN, requires_grad=True)
    several = (torch.zeros(2, 10, HIDDEN, requires_grad=True) * 1).unbind(0)
    with torch.no_grad():
        unrecorded = (torch.zeros(11, HIDDEN) * 1)[1:]
    with torch.inference_mode():
        inference = torch.zeros(10, HIDDEN)
    return {
        "a leaf that requires grad": leaf[:10].detach().requires_grad_(),
        "a leaf that requires grad, or a view of one": leaf[1:],
        "a view of kind MULTI_OUTPUT_NODE": several[1],
        "a view of kind NO_GRAD_MODE": unrecorded,
        "an inference tensor": inference,
    }


@pytest.mark.parametrize("reason", unwritable())
def test_destination_that_autograd_protects_is_refused_and_not_written(reason):
    items = [torch.ones(3, HIDDEN, requires_grad=True), torch.ones(2, HIDDEN)]
    out = unwritable()[reason]
    with pytest.raises(RuntimeError, match=f"{reason}.* cannot be written"):
        scatter_embeddings(out, items, SPANS)
    assert (out == 0).all()
    wide, base = [item.repeat(1, 2) for item in items], torch.zeros(10, HIDDEN)
    with pytest.raises(RuntimeError, match=f"{reason}.* cannot be written"):
        scatter_embeddings(base, wide, SPANS, deepstack=out.unsqueeze(0))
    assert (base == 0).all()
    assert (out == 0).all()


def test_scatter_into_view_of_leaf_without_grad_gives_rows_gradients():
    base, rows = torch.zeros(10, HIDDEN), torch.ones(3, HIDDEN, requires_grad=True)
    scatter_embeddings(base[1:], [rows], [2])
    (base * 2).sum().backward()
    assert torch.equal(rows.grad, torch.full((3, HIDDEN), 2.0))


def test_scatter_into_view_gradients_equal_those_of_slices(device):
    values = [torch.randn(2, 10, HIDDEN), torch.randn(3, 2 * HIDDEN), torch.randn(2, 2 * HIDDEN)]
    values = [value.to(device) for value in values]
    base, *items = leaves(*values)
    true_base, *true_items = leaves(*values)
    hidden, true_hidden = base * 1, true_base * 1
    levels = torch.zeros(1, 10, HIDDEN, device=device)
    scatter_embeddings(hidden[1], items, SPANS, deepstack=levels)
    placed, true_levels = sliced_scatter(
        true_hidden[1], true_items, torch.zeros(1, 10, HIDDEN, device=device)
    )
    expected = torch.stack([true_hidden[0], placed])
    assert torch.equal(hidden, expected)
    (hidden.sin().sum() + levels.sin().sum()).backward()
    (expected.sin().sum() + true_levels.sin().sum()).backward()
    for got, wanted in zip([base, *items], [true_base, *true_items], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.parametrize("levels_shape", [(2, 10, HIDDEN), (2, 2, 5, HIDDEN)], ids=["flat", "batch"])
def test_scatter_batch_with_deepstack_gradients_equal_those_of_slices(device, levels_shape):
    values = [
        torch.randn(2, 5, HIDDEN),
        torch.randn(2, 10, HIDDEN),
        torch.randn(3, 3 * HIDDEN),
        torch.randn(2, 3 * HIDDEN),
    ]
    values = [value.to(device) for value in values]
    base, deepstack, *items = leaves(*values)
    true_base, true_deepstack, *true_items = leaves(*values)
    levels = (deepstack * 1).view(levels_shape)
    out = scatter_embeddings(base * 1, items, SPANS, deepstack=levels)
    expected, expected_levels = sliced_scatter(true_base * 1, true_items, true_deepstack * 1)
    (out.sin().sum() + levels.cos().sum()).backward()
    (expected.sin().sum() + expected_levels.cos().sum()).backward()
    for got, wanted in zip([base, deepstack, *items], [true_base, true_deepstack, *true_items], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_embed_tokens_with_deepstack_gradients_equal_those_of_slices(device):
    ids = torch.randint(0, 9, (10,), device=device)
    values = [torch.randn(9, HIDDEN), torch.randn(3, 2 * HIDDEN), torch.randn(2, 2 * HIDDEN)]
    values = [value.to(device) for value in values]
    weight, *items = leaves(*values)
    true_weight, *true_items = leaves(*values)
    levels = torch.full((1, 10, HIDDEN), float("nan"), device=device)
    out = embed_tokens(ids, weight, items, SPANS, deepstack=levels)
    text = torch.nn.functional.embedding(ids, true_weight)
    expected, expected_levels = sliced_scatter(text, true_items, torch.zeros(1, 10, HIDDEN, device=device))
    assert torch.equal(levels, expected_levels)
    (out.sin().sum() + levels.sin().sum()).backward()
    (expected.sin().sum() + expected_levels.sin().sum()).backward()
    for got, wanted in zip([weight, *items], [true_weight, *true_items], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_embed_tokens_frozen_weight_computes_no_dense_gradient(monkeypatch):
    def refuse(*_):
        raise AssertionError("the dense gradient of a frozen weight was computed")

    monkeypatch.setattr("vitcache.placement.autograd.torch.ops.aten.embedding_dense_backward", refuse)
    rows = torch.randn(3, HIDDEN, requires_grad=True)
    embed_tokens(torch.zeros(10, dtype=torch.int64), torch.ones(2, HIDDEN), [rows], [4]).sum().backward()
    assert torch.equal(rows.grad, torch.ones(3, HIDDEN))


def test_scatter_bad_item_with_gradients_raises_the_eager_error():
    base = torch.zeros(6, HIDDEN, requires_grad=True) * 1
    for error, message, items, spans in [
        (
            TypeError,
            "item 0 must be a tensor, a Lease or a Reservation, got ndarray",
            [np.zeros((2, HIDDEN), np.float32)],
            [0],
        ),
        (ValueError, "item 0 is on meta", [torch.zeros(2, HIDDEN, device="meta")], [0]),
        (IndexError, "is beyond 64 bits", [torch.zeros(2, HIDDEN)], [10**30]),
        (ValueError, r"it must be \(n, 3\)", torch.zeros(2, HIDDEN), np.zeros((1, 4), np.int64)),
    ]:
        with pytest.raises(error, match=message):
            scatter_embeddings(base, items, spans)
    assert (base == 0).all()


def test_embed_tokens_out_with_gradients_is_refused_and_not_written():
    out = torch.zeros(2, HIDDEN)
    with pytest.raises(ValueError, match="out= records no gradients"):
        embed_tokens(torch.tensor([0, 1]), torch.ones(3, HIDDEN, requires_grad=True), [], [], out=out)
    with pytest.raises(ValueError, match="out= records no gradients"):
        embed_tokens(torch.tensor([0, 1]), torch.ones(3, HIDDEN), [], [], out=out.requires_grad_())
    assert (out == 0).all()


def test_scatter_bad_span_with_gradients_raises_and_writes_nothing():
    rows = torch.zeros(3, HIDDEN, requires_grad=True)
    out = torch.full((4, HIDDEN), float("nan"))
    with pytest.raises(IndexError, match=r"item 0 \(tokens \[2, 5\)\) does not fit in 4 tokens"):
        scatter_embeddings(out, [rows], [2])
    assert out.isnan().all()
