"""`agree_over`: an `agree` for tensor parallel vision towers, over torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def agree_over(group: Any = None) -> Callable[[Tensor], Tensor]:
    """Return an `agree` for `VisionPipeline`: an item that any rank misses is encoded by all ranks.

    Parameters
    ----------
    group
        A process group of torch.distributed whose backend takes CPU tensors, such as gloo. The flags are in
        host memory; on a GPU the host would have to wait for them. None: the default group.

    Raises
    ------
    RuntimeError
        If torch.distributed is not available or not initialized.
    TypeError
        If `group` is neither a process group nor None.
    ValueError
        If the group's backend takes no CPU tensors. The returned function raises ValueError on every rank if
        the ranks pass different numbers of items.

    Notes
    -----
    The returned function takes and returns a bool tensor on the CPU, one flag per item. It blocks until every
    rank of the group has called it: two all-reduces of a few bytes.

    Examples
    --------
    >>> import torch
    >>> from torch import distributed
    >>> from vitcache.adapters.distributed import agree_over
    >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    >>> agree = agree_over()  # for VisionPipeline(encode, cache, agree=agree)
    >>> agree(torch.tensor([True, False]))  # with more ranks: true where any rank has true
    tensor([ True, False])
    >>> distributed.destroy_process_group()
    """
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        raise RuntimeError("torch.distributed is not initialized: call init_process_group first")
    if group is not None and not isinstance(group, distributed.ProcessGroup):
        raise TypeError(f"group must be a process group or None, got {type(group).__name__}")
    backends = distributed.get_backend_config(group)  # such as "cpu:gloo,cuda:nccl"
    if "cpu:" not in backends:
        raise ValueError(f"the group's backend {backends!r} takes no CPU tensors: make a group with 'gloo'")

    def agree(miss: Tensor) -> Tensor:
        # An all-reduce of tensors of different lengths is undefined. One MAX over (n, -n) gives the largest
        # and the smallest number of items.
        sizes = torch.tensor([len(miss), -len(miss)], device="cpu")
        distributed.all_reduce(sizes, distributed.ReduceOp.MAX, group)
        most, least = int(sizes[0]), -int(sizes[1])
        if most != least:
            raise ValueError(
                f"ranks must have equal numbers of items in one step, got {least} to {most}; this rank has "
                f"{len(miss)}"
            )
        flags = miss.to(torch.uint8)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group)
        return flags.bool()

    return agree
