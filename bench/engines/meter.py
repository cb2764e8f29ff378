"""Measures one engine from inside its process: encodes, milliseconds by stage, and bytes moved.

The meter wraps three calls of the model runner: its `execute_model`, the encoder of the model, and
`prepare_inputs_embeds` of the model state, which only Model Runner V2 has. Bytes follow from the tensors of
the calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitcache.bench.harness.timing import TimedBlock

Call = Callable[..., Any]


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
    """Counts the bytes of `buffers` that are written in a ``with`` block, by any code.

    The buffers contain NaN in the block. Afterwards, elements that were not written have their old values.
    """

    def __init__(self, buffers: list[Tensor]) -> None:
        self.bytes = 0
        self._buffers = buffers
        self._values = [buffer.clone() for buffer in buffers]

    def __enter__(self) -> None:
        for buffer in self._buffers:
            buffer.fill_(torch.nan)

    def __exit__(self, *_: object) -> None:
        from vllm.utils.gpu_sync_debug import gpu_sync_allowed

        with gpu_sync_allowed():  # a run may forbid the step to wait for the GPU
            self._restore()

    def _restore(self) -> None:
        for buffer, value in zip(self._buffers, self._values, strict=True):
            is_kept = buffer.isnan()
            self.bytes += int((~is_kept).sum()) * buffer.itemsize
            torch.where(is_kept, value, buffer, out=buffer)


class Meter:
    """Wraps the calls of one model runner. `take` returns the sums since the last call of `take`."""

    def __init__(self, runner: Any, device: torch.device) -> None:
        self._device = device
        self._runner = runner
        self.counts_bytes = False
        self.new_requests: list[int] = []  # for each request, the number of its first step
        self._num_steps = 0
        self._clear()
        self._wrap(runner, "execute_model", self._step)
        self._wrap(runner.get_model(), "embed_multimodal", self._encode)
        state = getattr(runner, "model_state", None)
        if state is not None:
            self._wrap(state, "prepare_inputs_embeds", self._prepare)

    def _clear(self) -> None:
        self._blocks: dict[str, list[TimedBlock]] = {"encoder": [], "inputs": [], "step": []}
        self._host_s = {"encoder": 0.0, "inputs": 0.0}
        self.encodes = self.feature_bytes = self.written_bytes = self.steps = 0

    def take(self) -> dict[str, float]:
        """Return the sums and set them to 0. On CUDA the host waits for the measured calls."""
        ms = {name: sum(block.ms() for block in blocks) for name, blocks in self._blocks.items()}
        found = {
            "encodes": self.encodes,
            "steps": self.steps,
            "feature_bytes": self.feature_bytes,
            "written_bytes": self.written_bytes,
            "encoder_ms": ms["encoder"],
            "inputs_ms": ms["inputs"] - ms["encoder"],
            "step_ms": ms["step"],
            "inputs_host_us": 1e6 * (self._host_s["inputs"] - self._host_s["encoder"]),
        }
        self._clear()
        return found

    def _wrap(self, owner: Any, name: str, wrapper: Call) -> None:
        call = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            return wrapper(call, *arguments, **named)

        setattr(owner, name, wrapped)

    def _step(self, call: Call, *arguments: Any, **named: Any) -> Any:
        scheduled = arguments[0]
        self.new_requests += [self._num_steps] * len(scheduled.scheduled_new_reqs)
        self._num_steps += 1
        self.steps += 1
        with self._timed("step"):
            return call(*arguments, **named)

    def _encode(self, call: Call, *arguments: Any, **named: Any) -> Any:
        self.feature_bytes += sum(leaf.nbytes for leaf in tree_leaves(named) if isinstance(leaf, Tensor))
        with self._timed("encoder"):
            rows = call(*arguments, **named)
        self.encodes += len(rows)
        return rows

    def _prepare(self, call: Call, *arguments: Any, **named: Any) -> Any:
        if self.counts_bytes:
            return self._count(call, *arguments, **named)
        with self._timed("inputs"):
            return call(*arguments, **named)

    def _count(self, call: Call, *arguments: Any, **named: Any) -> Any:
        """Count written bytes. A launch that torch does not see is counted by the buffers that it writes."""
        buffers = [self._runner.model_state.encoder_runner.inputs_embeds]
        buffers += getattr(self._runner.get_model(), "deepstack_input_embeds", None) or []
        in_buffers, by_torch = BufferWrites(buffers), TorchWrites(buffers)
        with in_buffers, by_torch:
            embeds = call(*arguments, **named)
        self.written_bytes += by_torch.bytes + (0 if by_torch.writes_buffers else in_buffers.bytes)
        return embeds

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        block, begin = TimedBlock(self._device), time.perf_counter()
        with block:
            yield
        self._blocks[stage].append(block)
        if stage in self._host_s:
            self._host_s[stage] += time.perf_counter() - begin
