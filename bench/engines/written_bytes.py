"""Counts the bytes that a call writes: by torch operations, and by a launch that torch does not see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TorchWrites(TorchDispatchMode):
    """Adds up the bytes that torch operations write, and notes whether one of them writes to `buffers`."""

    def __init__(self, buffers: list[Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self.writes_buffers = False
        self._storages = {buffer.untyped_storage().data_ptr() for buffer in buffers}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            # `index_put_` returns the whole tensor and writes only the rows of its values.
            is_part = operation.overloadpacket.__name__ == "index_put_"
            self.bytes += args[2].nbytes if is_part else sum(tensor.nbytes for tensor in written)
            if any(tensor.untyped_storage().data_ptr() in self._storages for tensor in written):
                self.writes_buffers = True
        return result


class BufferWrites:
    """Counts the bytes of `buffers` that any code writes until `restore`.

    Until then the buffers contain NaN in place of their values. Written rows must not contain NaN.
    """

    def __init__(self, buffers: list[Tensor]) -> None:
        self.bytes = 0
        self._buffers = buffers
        self._values = [buffer.clone() for buffer in buffers]
        for buffer in buffers:
            buffer.fill_(torch.nan)

    def restore(self) -> None:
        """Count, and give elements that were not written their old values. The host waits for the device."""
        for buffer, value in zip(self._buffers, self._values, strict=True):
            is_kept = buffer.isnan()
            self.bytes += int((~is_kept).sum()) * buffer.itemsize
            torch.where(is_kept, value, buffer, out=buffer)
