"""The compiled kernels that placements launch: list them, load them, and guard the moment of loading.

This module is imported with `gpu_kernels`, because Triton may be missing on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product

import torch

from vitcache.device.capture import relaxed_capture_mode
from vitcache.device.streams import is_capturing
from vitcache.placement.destination import Destination
from vitcache.triton_kernels.blocks import block_shape
from vitcache.triton_kernels.embed_rows import EmbedVariant, embed_kernel
from vitcache.triton_kernels.launch import Variant
from vitcache.triton_kernels.rows import NO_LEVELS, LevelForm
from vitcache.triton_kernels.scatter_rows import ScatterVariant, scatter_kernel

VECTOR_BYTES = 16
Choices = tuple[bool, ...]  # whether a call has a property: always, never, or either


def scatter_variants(
    device: torch.device,
    hidden: int,
    target: torch.dtype,
    sources: Sequence[torch.dtype],
    stores: Sequence[torch.dtype | None],
    scale: Choices,
    has_holes: Choices,
    forms: Sequence[LevelForm] = (NO_LEVELS,),
) -> Iterator[ScatterVariant]:
    """Yield the kernels of `scatter_embeddings` for rows of any alignment.

    Parameters
    ----------
    target, sources
        Dtype of the destination, and dtypes of the rows.
    stores
        Dtypes in which rows are stored; None stands for calls that store no rows.
    scale, has_holes
        Whether the rows are scaled, and whether the table is that of a `PlacementTable`. Rows of a
        `PlacementTable` are never stored, packed or narrow.
    forms
        Forms of the deepstack levels.
    """
    shape = block_shape(hidden, device)
    for source, store, scaled, holes, form in product(sources, stores, scale, has_holes, forms):
        if holes and (store is not None or form.is_packed or form.has_narrow):
            continue
        for is_aligned in _alignments(hidden, source, store):
            yield ScatterVariant(
                device.index, source, store, target, hidden, scaled, holes, form, is_aligned, shape
            )


def embed_variants(
    device: torch.device,
    hidden: int,
    target: torch.dtype,
    weight: torch.dtype,
    sources: Sequence[torch.dtype],
    stores: Sequence[torch.dtype | None],
    scale: Choices,
    text_scale: Choices,
    forms: Sequence[LevelForm] = (NO_LEVELS,),
) -> Iterator[EmbedVariant]:
    """Yield the kernels of `embed_tokens` for rows of any alignment.

    Parameters
    ----------
    weight
        Dtype of the weight. The source of a call without images has it, too.
    target, sources, stores, scale, forms
        As in `scatter_variants`.
    text_scale
        Whether the rows of text tokens are scaled.
    """
    shape = block_shape(hidden, device)
    all_sources = dict.fromkeys((weight, *sources))
    for source, store, scaled, text_scaled, form in product(all_sources, stores, scale, text_scale, forms):
        constants = device.index, source, store, target, weight, hidden, scaled, text_scaled, form
        for is_aligned in _alignments(hidden, source, store):
            yield EmbedVariant(*constants, is_aligned, shape)


def table_variants(
    destination: Destination, source: torch.dtype, weight: torch.dtype, scaled: bool, text_scaled: bool
) -> Iterator[ScatterVariant | EmbedVariant]:
    """Yield the kernels of both calls with a `PlacementTable` whose rows are of dtype `source`."""
    device, hidden, target = destination.device, destination.hidden, destination.rows.dtype
    forms = (LevelForm(is_listed=destination.is_listed),)
    yield from scatter_variants(device, hidden, target, (source,), (None,), (scaled,), (True,), forms)
    yield from embed_variants(
        device, hidden, target, weight, (source,), (None,), (scaled,), (text_scaled,), forms
    )


def level_forms(names: Iterable[str], narrow: bool) -> list[LevelForm]:
    """The forms of levels with these names, "tensor", "list" or "packed"; no levels are a tensor."""
    forms = [LevelForm(name == "list", name == "packed") for name in dict.fromkeys(("tensor", *names))]
    return forms + [form._replace(has_narrow=True) for form in forms if narrow]


def load(variants: Iterable[ScatterVariant | EmbedVariant]) -> None:
    """Compile and load kernels. The device of each is made current."""
    for variant in variants:
        kernel = scatter_kernel if isinstance(variant, ScatterVariant) else embed_kernel
        with nullcontext() if variant.device is None else torch.cuda.device(variant.device):
            kernel.load(variant)


@contextmanager
def loading(variant: Variant) -> Iterator[None]:
    """The guard of `RowKernel.load`: refuse to load during a capture, and break no other thread's capture.

    Raises
    ------
    RuntimeError
        If the current stream captures a CUDA graph. CUDA forbids to load a module during a capture.
    """
    if variant.device is None:  # no GPU: Triton compiles for one that is not there
        yield
        return
    if is_capturing(torch.device("cuda", variant.device)):
        raise RuntimeError(
            "a CUDA graph is being captured, and the kernel of this call is not loaded: call "
            f"PlacementTable.warm_up or vitcache.warm_up before the capture. The kernel is {variant}"
        )
    with relaxed_capture_mode():
        yield


def _alignments(hidden: int, source: torch.dtype, store: torch.dtype | None) -> Choices:
    """Whether rows may begin at multiples of 16 bytes; any row may begin elsewhere."""
    itemsize = source.itemsize if store is None else min(source.itemsize, store.itemsize)
    return (False, True) if hidden * itemsize % VECTOR_BYTES == 0 else (False,)


scatter_kernel.guard = embed_kernel.guard = loading
