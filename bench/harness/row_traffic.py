"""Counts the bytes of rows that a call reads and writes, by torch operations and by launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RowTraffic(TorchDispatchMode):
    """Counts the bytes of tensors of one dtype that a call reads and writes while the mode is active.

    An operation reads its arguments and writes its results, except that

    - views read and write nothing, and a new uninitialized tensor is not written;
    - an embedding reads as many bytes as it writes, not its whole weight;
    - `masked_scatter` first copies all of its first argument, and then writes the source.

    Ids and masks have other dtypes: they are not counted.

    Torch does not see the launches of this package, so the mode writes NaN to memory that a launch may write:
    each new uninitialized tensor, and the rows of the id `placeholder` in the result of an embedding. An
    element of it that is a number at the end, and that no operation wrote, was read and written once by a
    launch. Rows must not contain NaN. The mode keeps this memory until it is deleted.
    """

    def __init__(self, dtype: torch.dtype, placeholder: int) -> None:
        super().__init__()
        self._dtype, self._placeholder = dtype, placeholder
        self._read = self._written = self._written_to_filled = 0
        # By address: a storage that contains NaN, and the number of its other elements at the beginning.
        self._filled: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def total(self) -> int:
        """Return the bytes that were read, plus those that were written. The mode must not be active."""
        new = sum(self._count_numbers(storage) - before for storage, before in self._filled.values())
        by_launches = max(0, new * self._dtype.itemsize - self._written_to_filled)
        return self._read + self._written + 2 * by_launches

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        targets = self._rows(result)
        if name.startswith(("empty", "new_empty")):
            for tensor in targets:
                self._fill(tensor.fill_(torch.nan))
        elif not operation.is_view:
            self._count(name, self._rows((args, kwargs)), targets)
        if name == "embedding" and targets:
            self._fill(result.masked_fill_((args[1] == self._placeholder)[..., None], torch.nan))
        return result

    def _count(self, name: str, arguments: list[Tensor], targets: list[Tensor]) -> None:
        sources = [each for each in arguments if all(each is not target for target in targets)]
        written = sum(tensor.nbytes for tensor in targets)
        if name == "masked_scatter":
            written += arguments[-1].nbytes
        self._written += written
        self._read += written if name == "embedding" else sum(tensor.nbytes for tensor in sources)
        if any(tensor.untyped_storage().data_ptr() in self._filled for tensor in targets):
            self._written_to_filled += written

    def _rows(self, values: Any) -> list[Tensor]:
        leaves = tree_leaves(values)
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dtype == self._dtype]

    def _fill(self, tensor: Tensor) -> None:
        # The storage, not the tensor: a second reference to a tensor could change how a forward uses it.
        storage = tensor.untyped_storage()
        self._filled[storage.data_ptr()] = storage, self._count_numbers(storage)

    def _count_numbers(self, storage: torch.UntypedStorage) -> int:
        elements = torch.empty(0, dtype=self._dtype, device=storage.device).set_(storage)
        return elements.numel() - int(elements.isnan().sum())
