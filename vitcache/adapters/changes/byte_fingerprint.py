"""`ByteFingerprint`: finds changes of weights that nothing else notices, by checksums of their bytes."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from vitcache.adapters.changes.byte_blocks import Block, cut_in_parts, regions_of
from vitcache.adapters.changes.byte_checksums import ByteChecksums, checksums, multipliers
from vitcache.adapters.changes.host_copy import HostCopy, copy_class
from vitcache.adapters.changes.model_changes import FINGERPRINT
from vitcache.adapters.changes.outer_modules import all_weights
from vitcache.arguments import to_int
from vitcache.device.locks import new_lock
from vitcache.device.streams import is_capturing


class Owner(Protocol):
    """The attachment whose entries were made with the weights: a `Session`."""

    model: nn.Module

    def forget(self, kind: str, detail: str = "") -> None:
        """Use no earlier entry again, and call `ByteFingerprint.reset`."""

    def begin_namespace(self) -> None:
        """Use no earlier entry again."""

    def warn(self, message: str) -> None:
        """Log a warning."""


class ByteFingerprint:
    """Compares the bytes of a model's weights with their checksums, one N-th of them at each check.

    The weights are the parameters and buffers outside of the language model, with their bytes at the last
    noticed change. A later change of any byte is found by the N-th check after it at the latest, if the byte
    does not change back before: by `Tensor.data`, a NumPy view, a kernel of another library, a collective in
    place. Then the owner forgets its entries, one warning per object names a weight that changed, and new
    checksums of all weights are computed.

    New checksums are computed before the owner begins the namespace in which they are used. So a write during
    an encode is found, too.

    Cost of a check
        It reads about 1/N of the weights. Torch multiplies and sums each block, which is a weight or 256 KiB
        of a weight (2 MiB on a GPU): two launches, and a temporary tensor of twice its size. To share out
        time, a block counts as 32 KiB more. A GPU also gets one launch and one copy to pinned memory. The
        host does not wait for them; a later check compares. So with a GPU a check reads 1/(N - 1), and finds
        a change by the N-th check unless the GPU lags behind the host. With N = 1 a check reads all weights,
        and the host waits.
    Cost of new checksums
        The constructor, and the first check after a noticed change, read all weights, and the host waits.

    Offloaded weights are read where accelerate keeps them in host memory; offloaded weights in files are not
    read, and neither are sparse weights. A check during the capture of a CUDA graph reads nothing.

    Any thread may call any method. While a thread checks, a check of another thread returns at once and is
    not one of the N, and so does a check from inside of a check. A thread never waits for another one.

    Parameters
    ----------
    calls
        N, the number of checks that read all weights.
    model
        The model.
    copies
        Returns the class that copies checksums from a device to the host.

    Raises
    ------
    TypeError
        If `calls` is not an int.
    ValueError
        If `calls` is less than 1.
    """

    def __init__(
        self,
        calls: int,
        model: nn.Module,
        copies: Callable[[torch.device], type[HostCopy]] = copy_class,
    ) -> None:
        self._calls = to_int("calls", calls, 1)
        self._copies = copies
        self._lock = new_lock()
        self._running: _RunningCheck | None = None
        self._multipliers: dict[torch.device, Tensor] = {}
        self._parts: list[list[ByteChecksums]] = []
        self._next = 0
        self._started: deque[ByteChecksums] = deque()
        self._must_take = True
        self._has_warned = False
        self._take(model)

    def reset(self) -> None:
        """Compute new checksums at the next check, because weights changed, or a namespace began."""
        self._must_take = True

    def check(self, owner: Owner) -> None:
        """Read the next part of the weights of `owner.model`; if one changed, make the owner forget.

        Call it after all other checks of the weights, and before the namespace is read.
        """
        token = _Token()
        with self._lock:
            if self._running is not None:
                if self._running.is_alive():
                    return
                # An exception ended the last check, which may have found a change; or this is a forked child,
                # and a thread of the parent checks.
                self._must_take = True
            self._running = _RunningCheck(token)
        try:
            self._check(owner)
            self._running = None
        finally:
            del token  # also if a caller keeps the exception, and with it this frame

    def _check(self, owner: Owner) -> None:
        if any(map(is_capturing, self._multipliers)):
            return
        changed = None
        if not self._must_take:
            try:
                changed = self._check_next()
            except ReferenceError:
                self._must_take = True
        if changed is not None:
            self._note(changed, owner)
        if self._must_take:
            self._take(owner.model)
            owner.begin_namespace()

    def _check_next(self) -> str | None:
        """Start the checksums of the next part; return a weight whose completed checksums changed."""
        part = self._parts[self._next]
        self._next = (self._next + 1) % len(self._parts)
        for sums in part:
            if sums not in self._started:  # the device lags behind by a whole round
                sums.start()
                self._started.append(sums)
        if self._calls == 1:
            for sums in part:
                sums.copy.wait()
        while self._started and self._started[0].copy.is_complete():
            changed = self._started.popleft().changed()
            if changed is not None:
                return changed
        return None

    def _note(self, changed: str, owner: Owner) -> None:
        """Make the owner forget its entries, and warn once."""
        owner.forget(FINGERPRINT, changed)
        self._must_take = True
        if not self._has_warned:
            self._has_warned = True
            owner.warn(
                f"the bytes of {changed} changed, as by a write through .data, and only their checksum shows "
                "it: earlier entries are not used again. Call attachment.invalidate() after such a change; "
                "further ones are only counted, in stats().changes"
            )

    def _take(self, model: nn.Module) -> None:
        """Compute the checksums of all weights. The host waits for the devices."""
        # Cleared first: these checksums may not contain the writes before a reset that another thread calls.
        self._must_take = False
        self._started.clear()
        try:
            # Later calls, in whatever mode, write to these tensors.
            with torch.inference_mode(mode=False):
                self._parts = self._take_parts(model)
        except BaseException as error:
            self._must_take = True
            if not isinstance(error, ReferenceError):
                raise

    def _take_parts(self, model: nn.Module) -> list[list[ByteChecksums]]:
        regions = regions_of(all_weights(model))
        devices = {region.storage.device for region in regions}
        is_late = any(self._copies(device).is_late for device in devices)
        for device in devices - self._multipliers.keys():
            self._multipliers[device] = multipliers(device)
        parts = [_by_device(part) for part in cut_in_parts(regions, max(1, self._calls - is_late))]
        # All parts are queued before the host waits for the first one.
        sums = [[checksums(blocks, self._multipliers[device]) for device, blocks in part] for part in parts]
        self._next = 0
        return [
            [
                ByteChecksums(blocks, self._multipliers[device], self._copies(device)(first))
                for (device, blocks), first in zip(part, firsts, strict=True)
            ]
            for part, firsts in zip(parts, sums, strict=True)
        ]


class _Token:
    """Lives as long as the frame of a call of `check`. Also the frame of an interrupted call is freed."""


class _RunningCheck:
    """A call of `check` that has not returned."""

    def __init__(self, token: _Token) -> None:
        self._process = os.getpid()
        self._token = weakref.ref(token)

    def is_alive(self) -> bool:
        """Whether the call runs in this process. False: an exception or a fork ended it."""
        return self._token() is not None and self._process == os.getpid()


def _by_device(blocks: list[Block]) -> list[tuple[torch.device, list[Block]]]:
    found: dict[torch.device, list[Block]] = {}
    for block in blocks:
        found.setdefault(block.device, []).append(block)
    return list(found.items())
