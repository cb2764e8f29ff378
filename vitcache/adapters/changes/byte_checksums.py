"""`ByteChecksums`: the checksums of some blocks of weights, at first and now."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache.adapters.changes.byte_blocks import WORD_BYTES, Block, max_block_bytes
from vitcache.adapters.changes.host_copy import HostCopy


def multipliers(device: torch.device) -> Tensor:
    """Return random odd int64 numbers on `device`, one for each word of the largest block there."""
    generator = torch.Generator("cpu").manual_seed(0)
    limits, size = torch.iinfo(torch.int64), (max_block_bytes(device) // WORD_BYTES,)
    numbers = torch.randint(limits.min, limits.max, size, generator=generator, device="cpu")
    return (numbers | 1).to(device)


def checksums(blocks: list[Block], multipliers: Tensor) -> Tensor:
    """Return the checksum of each block, ``(len(blocks),)`` int64 on their device, from the current stream.

    The checksum is the sum of the block's 32-bit words, each multiplied with the odd multiplier of its
    position, mod 2^64. A change within one word always changes it, because an odd number has an inverse. A
    change of several words keeps it with a probability of at most 2^-32, because multipliers are random.

    Parameters
    ----------
    blocks
        Blocks of one device, at least one.
    multipliers
        Result of `multipliers` for that device.

    Raises
    ------
    ReferenceError
        If the memory of a block was freed.
    """
    sums = []
    for block in blocks:
        words = block.words()
        sums.append((words * multipliers[: len(words)]).sum())
    return torch.stack(sums)


class ByteChecksums:
    """The first checksums of blocks of one device, and those of the last `start`.

    One thread at a time may call.

    Parameters
    ----------
    blocks, multipliers
        As in `checksums`.
    copy
        The first checksums in host memory. `start` copies the next ones there.
    """

    def __init__(self, blocks: list[Block], multipliers: Tensor, copy: HostCopy) -> None:
        self._blocks = blocks
        self._multipliers = multipliers
        self._first = copy.value.clone()
        self.copy = copy

    def start(self) -> None:
        """Compute the checksums again. Raises ReferenceError if the memory of a block was freed."""
        self.copy.start(checksums(self._blocks, self._multipliers))

    def changed(self) -> str | None:
        """Return the weight of the first block that changed, or None, when `copy` is complete."""
        if torch.equal(self.copy.value, self._first):
            return None
        return self._blocks[int((self.copy.value != self._first).nonzero()[0])].name
