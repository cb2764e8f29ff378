"""The operators of torch.library, and the choice of what runs on which device.

Every operator writes into its first argument and returns nothing: one that returned it would break
functionalization. Schemas are defined in Python through one library that lives as long as the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vitcache import reference, row_copy
from vitcache.destination import Destination
from vitcache.device.streams import is_capturing
from vitcache.placement import Placement
from vitcache.placement_table import PlacementTable

_library = torch.library.Library("vitcache", "DEF")
# Their tables live for one call: a graph that captured one would replay what came after it.
_tags = [tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None]
for _schema in (
    "scatter_embeddings_(Tensor(a!) inputs_embeds, Tensor(b!)? deepstack, Tensor[] embeddings, Tensor runs, "
    "float? scale) -> ()",
    "embed_tokens_(Tensor(a!) out, Tensor(b!)? deepstack, Tensor input_ids, Tensor weight, "
    "Tensor[] embeddings, Tensor runs, float? scale, float? text_scale) -> ()",
    "gather_rows(Tensor grad, Tensor runs, SymInt[] num_rows, float? scale) -> Tensor",
    "clear_rows_(Tensor(a!) rows, Tensor runs) -> ()",
):
    _library.define(_schema, tags=_tags)


def uses_kernels(device: torch.device) -> bool:
    """Whether tensors on `device` are placed by the kernels; elsewhere native copies or the reference do."""
    return device.type == "cuda"


def refuse_capture(device: torch.device) -> None:
    """Raise RuntimeError if a CUDA graph is being captured, before anything is queued that would be in it."""
    if is_capturing(device):
        raise RuntimeError(
            "this placement cannot be captured in a CUDA graph, its table lives for one call only: "
            "use a PlacementTable"
        )


def scatter(destination: Destination, placement: Placement, scale: float | None) -> None:
    """Run one checked scatter where its destination lives."""
    if uses_kernels(destination.rows.device):
        from vitcache.triton_kernels import scatter_rows as kernels

        kernels.scatter_rows(destination, placement, scale)
    elif placement.stored:
        scatter(destination, placement.through_pages(destination), scale)
    elif row_copy.moves_bits(destination, placement, scale):
        row_copy.scatter_rows(destination, placement)
    else:
        reference.scatter_embeddings(
            destination.rows, destination.deepstack, placement.segments(), placement.runs(), scale
        )


def scatter_table(destination: Destination, table: PlacementTable, scale: float | None) -> None:
    """`scatter` from a table at a fixed address."""
    placement = table.bind(destination)
    if uses_kernels(destination.rows.device):
        from vitcache.triton_kernels import scatter_rows as kernels

        kernels.scatter_table(destination, table, scale)
        table.leave_fence()
    else:
        scatter(destination, placement, scale)


def embed_table(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    table: PlacementTable,
    scale: float | None,
    text_scale: float | None,
) -> None:
    """`embed` from a table at a fixed address."""
    placement, tokens = table.bind_tokens(destination)
    if uses_kernels(destination.rows.device):
        from vitcache.triton_kernels import embed_rows as kernels

        kernels.embed_table(
            destination, input_ids.reshape(-1).contiguous(), weight, table, tokens, scale, text_scale
        )
        table.leave_fence()
    else:
        embed(destination, input_ids, weight, placement, scale, text_scale)


def embed(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    placement: Placement,
    scale: float | None,
    text_scale: float | None,
) -> None:
    """Run one checked build of ``inputs_embeds`` where its destination lives."""
    ids = input_ids.reshape(-1).contiguous()  # its view may be strided
    if uses_kernels(destination.rows.device):
        from vitcache.triton_kernels import embed_rows as kernels

        kernels.embed_rows(destination, ids, weight, placement, scale, text_scale)
    elif placement.stored:
        reference.check_text_ids(ids, len(weight), placement.runs())  # before pages are written
        embed(destination, ids, weight, placement.through_pages(destination), scale, text_scale)
    elif weight.dtype == destination.rows.dtype and row_copy.moves_bits(
        destination, placement, scale, text_scale
    ):
        row_copy.embed_rows(destination, ids, weight, placement)
    else:
        reference.embed_tokens(
            destination.rows,
            destination.deepstack,
            ids,
            weight,
            placement.segments(),
            placement.runs(),
            scale,
            text_scale,
        )


def _scatter_operator(
    inputs_embeds: Tensor,
    deepstack: Tensor | None,
    embeddings: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
) -> None:
    destination = Destination("inputs_embeds", inputs_embeds, deepstack)
    refuse_capture(inputs_embeds.device)
    scatter(destination, Placement.from_runs(destination, embeddings, runs), scale)


def _embed_operator(
    out: Tensor,
    deepstack: Tensor | None,
    input_ids: Tensor,
    weight: Tensor,
    embeddings: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
    text_scale: float | None,
) -> None:
    destination = Destination("out", out, deepstack)
    refuse_capture(out.device)
    embed(
        destination, input_ids, weight, Placement.from_runs(destination, embeddings, runs), scale, text_scale
    )


def _gather_operator(grad: Tensor, runs: Tensor, num_rows: Sequence[int], scale: float | None) -> Tensor:
    """The transpose of a scatter: per item row the float32 sum of the rows that it was written to, packed."""
    tokens = grad.reshape(-1, grad.shape[-1])
    rows = grad.new_zeros((sum(num_rows), grad.shape[-1]), dtype=torch.float32)
    firsts = list(accumulate(num_rows, initial=0))
    for item, start, length, source_start in runs.tolist():
        first = firsts[item] + source_start
        rows[first : first + length] += tokens[start : start + length]
    return rows if scale is None else rows.mul_(scale)


def _clear_operator(rows: Tensor, runs: Tensor) -> None:
    """Zero the tokens under the runs in ``(T, H)`` rows."""
    for _, start, length, _ in runs.tolist():
        rows[start : start + length] = 0


def _below_autograd(operator: torch._ops.OpOverload, name: str) -> None:
    """Refuse gradients: without this they would pass an in-place operator unseen."""

    def refuse(*arguments: object) -> object:
        flat = [
            value
            for argument in arguments
            for value in (argument if isinstance(argument, list) else [argument])
        ]
        if torch.is_grad_enabled() and any(
            isinstance(value, Tensor) and value.requires_grad for value in flat
        ):
            raise RuntimeError(f"torch.ops.vitcache.{name} has no gradient; the functions of vitcache have")
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    _library.impl(name, refuse, "Autograd")


def _register() -> None:
    operators = {
        "scatter_embeddings_": _scatter_operator,
        "embed_tokens_": _embed_operator,
        "gather_rows": _gather_operator,
        "clear_rows_": _clear_operator,
    }
    for name, implementation in operators.items():
        for device in ("CPU", "CUDA"):
            _library.impl(name, implementation, device)
        _below_autograd(getattr(torch.ops.vitcache, name).default, name)
    for name in ("scatter_embeddings_", "embed_tokens_", "clear_rows_"):
        torch.library.register_fake(f"vitcache::{name}", lambda *_: None, lib=_library)

    def fake_gather(grad: Tensor, runs: Tensor, num_rows: Sequence[int], scale: float | None) -> Tensor:
        return grad.new_empty((sum(num_rows), grad.shape[-1]), dtype=torch.float32)

    torch.library.register_fake("vitcache::gather_rows", fake_gather, lib=_library)


_register()
