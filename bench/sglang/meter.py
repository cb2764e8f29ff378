"""A plug-in of SGLang for the bench `sglang_chat`: it measures the steps of a scheduler from inside.

SGLang loads it in each of its processes, by the entry point that `chat_start` writes. Only in the process
of a scheduler it does something: it adds the methods of `Meter` to the class, for `Engine.collective_rpc`.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

SCHEDULER = "sglang.srt.managers.scheduler"
ATTENTION = "sglang.srt.layers.attention.vision"
STATS = "vitcache.adapters.sglang.service"


def register() -> None:
    """Give the class of the scheduler the methods `bench_start`, `bench_take` and `bench_limit`."""
    module = sys.modules.get(SCHEDULER)
    if module is None:
        return
    module.Scheduler.bench_start = lambda scheduler: setattr(scheduler, "bench_meter", Meter(scheduler))
    module.Scheduler.bench_take = lambda scheduler, path: scheduler.bench_meter.take(Path(path))
    module.Scheduler.bench_limit = lambda scheduler, num_bytes: limit_memory(num_bytes)


class Meter:
    """The calls of the encoder in each step of prefill, and the memory that they needed."""

    def __init__(self, scheduler: Any) -> None:
        runner = scheduler.tp_worker.model_runner
        self._device = runner.device if isinstance(runner.device, str) else runner.device.type
        self._chunks: list[dict[str, Any]] = []
        self._encode, self._run_batch = runner.model.get_image_feature, scheduler.run_batch
        runner.model.get_image_feature = self._timed_encode
        scheduler.run_batch = self._counted_batch
        if self._device == "cpu":
            sys.modules[ATTENTION].VisionSdpaAttention.forward = attend_by_image
        self._begin_memory()

    def take(self, path: Path) -> None:
        """Write the chunks since the last call, their peak memory, and the counts of vitcache, as JSON."""
        chunks = [
            {
                "vit_ms": sum(call.ms() for call in chunk["calls"]),
                "images": sum(chunk["images"]),
                "largest": max(chunk["rows"], default=0),
            }
            for chunk in self._chunks
        ]
        stats = sys.modules[STATS].stats() if STATS in sys.modules else None
        found = {
            "chunks": chunks,
            "peak_bytes": self._peak_memory() - self._memory_before,
            "steps": stats.steps if stats else 0,
            "errors": stats.errors if stats else 0,
            "demotions": sum(cache.demotions for cache in stats.caches) if stats else 0,
        }
        path.write_text(json.dumps(found))
        self._chunks = []
        self._begin_memory()

    def _counted_batch(self, batch: Any, *arguments: Any, **named: Any) -> Any:
        if batch.forward_mode.is_extend():
            self._chunks.append({"calls": [], "images": [], "rows": []})
        return self._run_batch(batch, *arguments, **named)

    def _timed_encode(self, items: list[Any]) -> Any:
        import torch

        from vitcache.bench.harness.timing import TimedBlock

        with TimedBlock(torch.device(self._device)) as call:
            rows = self._encode(items)
        if self._chunks:  # not in SGLang's own calls at the start
            chunk = self._chunks[-1]
            chunk["calls"].append(call)
            chunk["images"].append(len(items))
            chunk["rows"].append(len(rows) if isinstance(rows, torch.Tensor) else sum(map(len, rows)))
        return rows

    def _begin_memory(self) -> None:
        if self._device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the present size
            self._memory_before = status_bytes("VmRSS")
        else:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._memory_before = torch.cuda.memory_allocated()

    def _peak_memory(self) -> int:
        if self._device == "cpu":
            return status_bytes("VmHWM")
        import torch

        return torch.cuda.max_memory_allocated()


def attend_by_image(
    attention: Any, q: Any, k: Any, v: Any, bsz: int, cu_seqlens: Any = None, **_: Any
) -> Any:
    """Attend within each image, as the kernels for a GPU do. `q`, `k`, `v`: ``(patches, heads, head size)``.

    For a CPU, SGLang has only an attention with a mask of all pairs of patches in a call: time and memory
    would grow with the square of the images of a call, and SGLang keeps the last 128 masks.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    parts = []
    for first, last in pairwise(cu_seqlens.tolist()):
        query, key, value = (each[first:last].transpose(0, 1) for each in (q, k, v))
        rows = scaled_dot_product_attention(query, key, value, scale=attention.scale)
        parts.append(rows.transpose(0, 1))
    return torch.cat(parts)


def limit_memory(num_bytes: int) -> None:
    """Limit the memory that this process can add to its own data."""
    import resource

    limit = status_bytes("VmData") + num_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def status_bytes(field: str) -> int:
    """Return a size of this process, as Linux reports it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(kib)
