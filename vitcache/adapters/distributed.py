"""`agree_over`: an `agree` for tensor parallel vision towers, over torch.distributed."""

from __future__ import annotations

from typing import Any

from vitcache.adapters.agreement import Agreement


def agree_over(group: Any = None) -> Agreement:
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
        If the group's backend takes no CPU tensors. The returned object raises ValueError on every rank if
        the ranks pass different numbers of items.

    Notes
    -----
    The returned object takes and returns a bool tensor on the CPU, one flag per item. It blocks until every
    rank of the group has called it: one all-reduce of 256 bytes for up to 62 items, two for more. Its method
    `states` does the same with numbers, by which ranks also share failures: `VisionPipeline` calls it in
    place of the object, once more if an item failed, and once more before each call of the encoder. If an
    item cannot be loaded, hashed or copied on one rank, it fails on all ranks, and no rank encodes it.

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
    return Agreement((group,))
