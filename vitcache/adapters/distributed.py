"""`agree` for tensor parallel vision towers, over torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def agree_over(group: Any = None) -> Callable[[Tensor], Tensor]:
    """Return an `agree` for `VisionPipeline`: what any rank of the group misses, all encode.

    Parameters
    ----------
    group
        A process group of torch.distributed whose backend takes CPU tensors, such as gloo: what is agreed on
        are flags in host memory, and a GPU would have to be waited for. None: the default group.

    Raises
    ------
    RuntimeError
        If torch.distributed is not there, or was not initialised.
    ValueError
        If the group's backend takes no CPU tensors; and from the returned function, on every rank, if ranks
        come with other numbers of items.

    Notes
    -----
    Blocks until every rank has called it: one all-reduce of a few bytes.
    """
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        raise RuntimeError("torch.distributed is not initialised: call init_process_group first")
    backends = distributed.get_backend_config(group)  # such as "cpu:gloo,cuda:nccl"
    if "cpu:" not in backends:
        raise ValueError(f"the group's backend {backends!r} takes no CPU tensors: make one with 'gloo'")

    def agree(miss: Tensor) -> Tensor:
        # Other numbers of items would be undefined; the least and the most of them are one number in a MAX.
        sizes = torch.tensor([len(miss), -len(miss)], device="cpu")
        distributed.all_reduce(sizes, distributed.ReduceOp.MAX, group)
        most, least = int(sizes[0]), -int(sizes[1])
        if most != least:
            raise ValueError(f"ranks have from {least} to {most} items in one step, this one has {len(miss)}")
        flags = miss.to(torch.uint8)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group)
        return flags.bool()

    return agree
