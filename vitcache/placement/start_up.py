"""`warm_up`: load at start-up every kernel that later placements launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitcache.arguments import to_device, to_int
from vitcache.placement import dispatch
from vitcache.rows import DTYPE_NAMES, DTYPES

LEVEL_FORMS = ("tensor", "list", "packed")
INT32_MAX = (1 << 31) - 1  # a kernel reads the number of columns as an int32


def warm_up(
    device: torch.device | str | None = None,
    *,
    hidden: int,
    dtype: torch.dtype = torch.bfloat16,
    levels: int = 0,
    level_forms: Sequence[str] = LEVEL_FORMS,
    narrow: bool = True,
    source_dtypes: Sequence[torch.dtype] | None = None,
    weight_dtype: torch.dtype | None = None,
    store_dtype: torch.dtype | None = None,
    scale: bool = False,
    text_scale: bool = False,
    store: bool = True,
    table: bool = True,
) -> None:
    """Compile and load every kernel that placements with these properties launch.

    Without this call, the first placement of each kind compiles its kernel, which takes 0.3 to 0.5 seconds,
    or loads it from Triton's cache on disk. A call that is captured in a CUDA graph raises RuntimeError if
    its kernel is not loaded. Call `warm_up` once per process and device, when the model is loaded.

    Parameters
    ----------
    device
        The CUDA device of the destinations. None: the current CUDA device, or the CPU if torch finds no CUDA
        device. On the CPU no kernel is compiled, and the call only checks its arguments.
    hidden
        Elements ``H`` of a row of ``inputs_embeds``.
    dtype
        Dtype of ``inputs_embeds`` and of the deepstack levels.
    levels
        Number of deepstack levels. 0: the calls pass no deepstack.
    level_forms
        With levels: the forms in which calls pass them, besides one tensor. "list" is a list of tensors, and
        "packed" is `deepstack_rows`.
    narrow
        With levels: whether a pipeline places rows without deepstack columns, too.
    source_dtypes
        Dtypes of the image rows: those that an encoder returns, and that of the cache whose rows are placed.
        None: `dtype` and `store_dtype`.
    weight_dtype
        Dtype of the weight of `embed_tokens`. None: `dtype`. It differs only if calls pass ``out=``.
    store_dtype
        Dtype of the cache in which rows are stored. None: `dtype`.
    scale, text_scale
        Whether calls pass these factors. Calls without them are always covered.
    store
        Whether calls pass ``store=``, as the pipeline does for rows that it has encoded.
    table
        Whether calls pass a `PlacementTable`.

    Raises
    ------
    ValueError
        If `hidden` is less than 1, `levels` is negative, or either is 2**31 or more; if `level_forms` has an
        unknown name; if `device` is neither the CPU nor a CUDA device.
    TypeError
        If `hidden` or `levels` is not an int, a flag is not a bool, `level_forms` or `source_dtypes` is not a
        list, or a dtype is not float32, float16 or bfloat16.
    CudaError
        If `device` is a CUDA device and torch finds none.
    RuntimeError
        If the current stream of `device` captures a CUDA graph, and a kernel is not loaded.

    Notes
    -----
    Any thread may call. While another thread captures a CUDA graph, its capture stays valid. The host waits
    for the compiler, but queues no work on the device. Afterwards, no call that these arguments cover
    compiles or loads anything, whatever its number of tokens and images, its strides, the alignment of its
    tensors, and the dtype and offset of its ids. One call covers one width, one destination dtype, one weight
    dtype and one cache dtype: for a process with several of them, call `warm_up` for each combination.

    Examples
    --------
    >>> import vitcache
    >>> vitcache.warm_up("cpu", hidden=4096, levels=3)  # "cuda" at the start of a server
    """
    target = to_device(device)
    hidden, levels = to_int("hidden", hidden, 1, INT32_MAX), to_int("levels", levels, 0, INT32_MAX)
    for name, flag in (
        ("scale", scale),
        ("text_scale", text_scale),
        ("store", store),
        ("table", table),
        ("narrow", narrow),
    ):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {flag!r} of type {type(flag).__name__}")
    weight = dtype if weight_dtype is None else weight_dtype
    stored = dtype if store_dtype is None else store_dtype
    sources = tuple(dict.fromkeys((dtype, stored))) if source_dtypes is None else source_dtypes
    if not isinstance(sources, list | tuple):
        kind = type(sources).__name__
        raise TypeError(f"source_dtypes must be a list of dtypes or None, got {sources!r} of type {kind}")
    for name, value in (
        ("dtype", dtype),
        ("weight_dtype", weight),
        ("store_dtype", stored),
        *(("source_dtypes", source) for source in sources),
    ):
        if not isinstance(value, torch.dtype) or value not in DTYPES:
            raise TypeError(f"{name} has {value!r}, it must be one of {DTYPE_NAMES}")
    if isinstance(level_forms, str) or not isinstance(level_forms, Sequence):
        raise TypeError(f"level_forms must be a list of names, got {level_forms!r}")
    for form in level_forms:
        if form not in LEVEL_FORMS:
            raise ValueError(f"level_forms has {form!r}, it must be one of {', '.join(LEVEL_FORMS)}")
    if not dispatch.uses_kernels(target):
        return
    from vitcache.placement import kernel_variants

    either, never = (False, True), (False,)
    stores = (None, stored) if store else (None,)
    scales, text_scales, tables = (either if flag else never for flag in (scale, text_scale, table))
    forms = kernel_variants.level_forms(level_forms if levels else (), narrow and levels > 0)
    kernel_variants.load(
        (
            *kernel_variants.scatter_variants(target, hidden, dtype, sources, stores, scales, tables, forms),
            *kernel_variants.embed_variants(
                target, hidden, dtype, weight, sources, stores, scales, text_scales, forms
            ),
        )
    )
