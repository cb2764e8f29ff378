"""The operators of torch.library that gradients and torch.compile use.

An operator that writes its first argument returns None, because to return this argument would break
functionalization. The schemas are defined in Python, by one library that lives as long as the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vitcache.placement.destination import Destination
from vitcache.placement.dispatch import embed, refuse_capture, scatter
from vitcache.placement.placement import Placement
from vitcache.placement.reference import first_ranks

_library = torch.library.Library("vitcache", "DEF")
# A table is valid for one call. The replay of a captured graph would read memory that later calls rewrote.
_tags = [tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None]
for _schema in (
    "scatter_embeddings_(Tensor(a!) inputs_embeds, Tensor(b!)? deepstack, Tensor[] embeddings, Tensor runs, "
    "float? scale, bool is_packed=False) -> ()",
    "scatter_listed_(Tensor(a!) inputs_embeds, Tensor(b!)[] deepstack, Tensor[] embeddings, Tensor runs, "
    "float? scale) -> ()",
    "embed_tokens_(Tensor(a!) out, Tensor(b!)? deepstack, Tensor input_ids, Tensor weight, "
    "Tensor[] embeddings, Tensor runs, float? scale, float? text_scale, bool is_packed=False) -> ()",
    "embed_listed_(Tensor(a!) out, Tensor(b!)[] deepstack, Tensor input_ids, Tensor weight, "
    "Tensor[] embeddings, Tensor runs, float? scale, float? text_scale) -> ()",
    "rank_runs(Tensor runs, SymInt num_packed) -> Tensor",
    "gather_rows(Tensor grad, Tensor runs, SymInt[] num_rows, float? scale) -> Tensor",
    "clear_rows_(Tensor(a!) rows, Tensor runs) -> ()",
):
    _library.define(_schema, tags=_tags)


def _scatter_operator(
    inputs_embeds: Tensor,
    deepstack: Tensor | Sequence[Tensor] | None,
    embeddings: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
    is_packed: bool = False,
) -> None:
    levels = (None, deepstack) if is_packed else (deepstack, None)
    destination = Destination("inputs_embeds", inputs_embeds, *levels)
    refuse_capture(inputs_embeds.device)
    scatter(destination, Placement.from_runs(destination, embeddings, runs), scale)


def _embed_operator(
    out: Tensor,
    deepstack: Tensor | Sequence[Tensor] | None,
    input_ids: Tensor,
    weight: Tensor,
    embeddings: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
    text_scale: float | None,
    is_packed: bool = False,
) -> None:
    levels = (None, deepstack) if is_packed else (deepstack, None)
    destination = Destination("out", out, *levels)
    refuse_capture(out.device)
    embed(
        destination, input_ids, weight, Placement.from_runs(destination, embeddings, runs), scale, text_scale
    )


def _gather_operator(grad: Tensor, runs: Tensor, num_rows: Sequence[int], scale: float | None) -> Tensor:
    """The transpose of a scatter: for each row, the float32 sum of its tokens' gradients.

    Returns ``(sum(num_rows), H)``: the rows of all items, packed.
    """
    tokens = grad.reshape(-1, grad.shape[-1])
    rows = grad.new_zeros((sum(num_rows), grad.shape[-1]), dtype=torch.float32)
    firsts = list(accumulate(num_rows, initial=0))
    for item, start, length, source_start in runs.tolist():
        first = firsts[item] + source_start
        rows[first : first + length] += tokens[start : start + length]
    return rows if scale is None else rows.mul_(scale)


def _rank_operator(runs: Tensor, num_packed: int) -> Tensor:
    """The runs with their first rows of packed deepstack levels in place of their first tokens."""
    values = runs.tolist()
    num_placed = sum(length for _, _, length, _ in values)
    if num_placed != num_packed:
        raise ValueError(
            f"deepstack_rows has {num_packed} rows a level, the call places rows at {num_placed} tokens"
        )
    ranked = runs.clone()
    ranked[:, 1] = torch.tensor(first_ranks(values), dtype=torch.int64, device="cpu")
    return ranked


def _clear_operator(rows: Tensor, runs: Tensor) -> None:
    """Set the rows ``(T, H)`` at the tokens of the runs to zero."""
    for _, start, length, _ in runs.tolist():
        rows[start : start + length] = 0


def _refuse_gradients(operator: torch._ops.OpOverload, name: str) -> None:
    """Make the operator raise if autograd records it.

    By default autograd would ignore an in-place operator without a gradient formula.
    """

    def check_and_call(*arguments: object) -> object:
        values = [
            value
            for argument in arguments
            for value in (argument if isinstance(argument, list) else [argument])
        ]
        if torch.is_grad_enabled() and any(
            isinstance(value, Tensor) and value.requires_grad for value in values
        ):
            raise RuntimeError(f"torch.ops.vitcache.{name} has no gradient: call the function of vitcache")
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    _library.impl(name, check_and_call, "Autograd")


def _register() -> None:
    operators = {
        "scatter_embeddings_": _scatter_operator,
        "scatter_listed_": _scatter_operator,
        "embed_tokens_": _embed_operator,
        "embed_listed_": _embed_operator,
        "rank_runs": _rank_operator,
        "gather_rows": _gather_operator,
        "clear_rows_": _clear_operator,
    }
    for name, implementation in operators.items():
        for device in ("CPU", "CUDA"):
            _library.impl(name, implementation, device)
        _refuse_gradients(getattr(torch.ops.vitcache, name).default, name)
    for name in ("scatter_embeddings_", "scatter_listed_", "embed_tokens_", "embed_listed_", "clear_rows_"):
        torch.library.register_fake(f"vitcache::{name}", lambda *_: None, lib=_library)

    def fake_gather(grad: Tensor, runs: Tensor, num_rows: Sequence[int], scale: float | None) -> Tensor:
        return grad.new_empty((sum(num_rows), grad.shape[-1]), dtype=torch.float32)

    torch.library.register_fake("vitcache::gather_rows", fake_gather, lib=_library)
    torch.library.register_fake("vitcache::rank_runs", lambda runs, _: torch.empty_like(runs), lib=_library)


_register()
