"""Record the variant of every launch, on a machine without a GPU.

A variant depends on the width and the dtypes of the rows, of the destination, of the weight and of the pages;
on the form of the levels and on the alignment of the rows; on whether a call scales, stores or reads a table;
and on the block shape, which follows from width and device. It does not depend on any count: items, rows,
tokens, levels, embeddings. So a body that runs with fewer items, rows and tokens launches the same variants,
if widths, dtypes and flags stay.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitcache.placement import dispatch, kernel_variants
from vitcache.triton_kernels.launch import Variant

KERNELS = (kernel_variants.scatter_kernel, kernel_variants.embed_kernel)
PLACEMENTS = ("scatter", "embed", "scatter_table", "embed_table")


class LaunchRecorder:
    """The variants that were launched, each with the label of its first launch.

    After `install`, a placement on the CPU is lowered for the kernels first, with launches that only record
    their variant, and then runs as before. A launch outside of such a placement is recorded and runs.

    Parameters
    ----------
    label
        Returns the name of the running test or case.
    """

    def __init__(self, label: Callable[[], str]) -> None:
        self._label = label
        self._thread = threading.local()
        self.labels: dict[Variant, str] = {}
        self.launchers: set[str] = set()  # the labels of all launches

    def install(self) -> None:
        uses_kernels = dispatch.uses_kernels
        dispatch.uses_kernels = lambda device: self._is_recording or uses_kernels(device)
        for kernel in KERNELS:
            kernel.launch = self._recorded(kernel.launch)  # type: ignore[method-assign]
        for name in PLACEMENTS:
            setattr(dispatch, name, self._lowered_first(getattr(dispatch, name)))

    def save(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(self.labels))

    @property
    def _is_recording(self) -> bool:
        return getattr(self._thread, "is_recording", False)

    def _recorded(self, launch: Callable[..., None]) -> Callable[..., None]:
        def record(variant: Variant, *rest: Any) -> None:
            label = self._label()
            self.launchers.add(label)
            self.labels.setdefault(variant, label)
            if not self._is_recording:
                launch(variant, *rest)

        return record

    def _lowered_first(self, place: Callable[..., None]) -> Callable[..., None]:
        def run(destination: Any, *rest: Any, **options: Any) -> None:
            thread = self._thread
            # A placement that a test sends to the kernels is interpreted. A placement may call another one.
            if getattr(thread, "is_placing", False) or dispatch.uses_kernels(destination.device):
                place(destination, *rest, **options)
                return
            thread.is_placing = True
            try:
                thread.is_recording = True
                try:
                    place(destination, *rest, **options)
                finally:
                    thread.is_recording = False
                place(destination, *rest, **options)
            finally:
                thread.is_placing = False

        return run


def read(path: Path) -> dict[Variant, str]:
    """The labels that `LaunchRecorder.save` wrote."""
    labels: dict[Variant, str] = pickle.loads(path.read_bytes())
    return labels


def warm_up_arguments(variant: Any) -> dict[str, Any]:
    """The arguments of `vitcache.warm_up` that describe a call with this variant, and no other call."""
    form = variant.form
    has_levels = any(form)
    return {
        "hidden": variant.hidden,
        "dtype": variant.target,
        "levels": int(has_levels),
        "level_forms": ["list"] * form.is_listed + ["packed"] * form.is_packed,
        "narrow": form.has_narrow,
        "source_dtypes": [variant.source],
        "weight_dtype": getattr(variant, "weight", None),
        "store_dtype": variant.store,
        "scale": variant.has_scale,
        "text_scale": getattr(variant, "has_text_scale", False),
        "store": variant.store is not None,
        "table": getattr(variant, "has_holes", False),
    }
