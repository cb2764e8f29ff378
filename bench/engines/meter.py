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
from torch.utils._pytree import tree_leaves

from vitcache.bench.engines.written_bytes import BufferWrites, TorchWrites
from vitcache.bench.harness.timing import TimedBlock

Call = Callable[..., Any]


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
        tensors = [leaf for leaf in tree_leaves(named) if isinstance(leaf, Tensor)]
        self.feature_bytes += sum(each.nbytes for each in tensors if each.device.type == self._device.type)
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
        from vllm.utils.gpu_sync_debug import gpu_sync_allowed

        buffers = [self._runner.model_state.encoder_runner.inputs_embeds]
        buffers += getattr(self._runner.get_model(), "deepstack_input_embeds", None) or []
        in_buffers, by_torch = BufferWrites(buffers), TorchWrites(buffers)
        with by_torch:
            embeds = call(*arguments, **named)
        with gpu_sync_allowed():  # a run may forbid the step to wait for the GPU
            in_buffers.restore()
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
