"""The engines that the bench `sglang_chat` compares: their options and environment variables."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcache.adapters.sglang.options import VARIABLE
from vitcache.bench.harness.registry import CPU

STOCK, VITCACHE, HOST_TIER = "stock", "vitcache", "vitcache, host tier"
NAMES = (STOCK, VITCACHE, HOST_TIER)
PLUG_INS = "plug_ins"  # the folder of the bench's own plug-in
METER = "vitcache_bench_meter"  # the name of this plug-in


@dataclass(frozen=True)
class Model:
    """A model of `chat_models`.

    `row_bytes` counts the deepstack levels, too. A row stands for `row_side` x `row_side` pixels.
    """

    row_bytes: int
    row_side: int = 32

    def image_bytes(self, width: int, height: int) -> int:
        """The bytes of the rows of an image. SGLang resizes it to whole rows."""
        return round(width / self.row_side) * round(height / self.row_side) * self.row_bytes


MODELS = {
    "tiny": Model(40 * 4 * 2),
    "8b": Model(4096 * 4 * 2),
    "reader": Model(96 * 2 * 4, row_side=8),
    "reader-untrained": Model(96 * 2 * 4, row_side=8),
}
REMOVED = ("SGLANG_", "VITCACHE_", "HF_")

# Triton, CUDA graphs and the overlap of steps need a GPU.
ON_CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "mm_attention_backend": "sdpa",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.1,
}
# Kernels of SGLang that take the shapes of the reader: rows of 96 float32 elements, heads of 32.
ANY_SHAPE = {
    "attention_backend": "torch_native",
    "mm_attention_backend": "sdpa",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
}


@dataclass(frozen=True)
class EngineOptions:
    """One engine.

    Parameters
    ----------
    contender
        One of `NAMES`.
    model
        One of `MODELS`.
    chunk_tokens
        The most tokens of a step of prefill.
    num_tokens
        The tokens of the KV cache. None: SGLang computes them from the free memory.
    cache_mb
        SGLANG_VLM_CACHE_SIZE_MB: the MiB of SGLang's cache of embeddings, or of the device tier.
    device_bytes
        The size of the device tier of the contender with a host tier. None: `cache_mb`.
    host_bytes
        The size of this contender's host tier.
    """

    contender: str
    model: str
    chunk_tokens: int
    num_tokens: int | None
    cache_mb: int
    device_bytes: int | None
    host_bytes: int

    def arguments(self, device_type: str) -> dict[str, Any]:
        """The arguments of SGLang's `Engine`, without the path of the model."""
        options: dict[str, Any] = {
            "grammar_backend": "none",
            # As on a busy server, the prefix cache has lost the KV of a chat before its next turn.
            "disable_radix_cache": True,
            "chunked_prefill_size": self.chunk_tokens,
            "max_running_requests": 2,
            "skip_server_warmup": True,
            "log_level": "warning",
        }
        if self.num_tokens is not None:
            options["max_total_tokens"] = self.num_tokens
        if self.model.startswith("reader"):
            options |= {"dtype": "float32", **ANY_SHAPE}
        if self.model == "8b":
            options["load_format"] = "dummy"
        return options | (ON_CPU if device_type == CPU else {})

    def variables(self, folder: Path, device_type: str) -> dict[str, str]:
        """The environment variables of the processes. All files that SGLang writes are in `folder`."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(REMOVED)}
        paths = (str(folder / PLUG_INS), own.get("PYTHONPATH"))
        found = {
            **own,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONSAFEPATH": "1",
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "SGLANG_CACHE_DIR": str(folder / "cache"),
            "SGLANG_PLUGINS": METER if self.contender == STOCK else f"vitcache,{METER}",
            "SGLANG_VLM_CACHE_SIZE_MB": str(self.cache_mb),
        }
        if device_type == CPU:
            # The value 1 needs SGLang's kernels for the CPU, of which PyPI has no wheel.
            found |= {"SGLANG_USE_CPU_ENGINE": "0", "OMP_NUM_THREADS": "1"}
        if self.contender == HOST_TIER:
            sizes = {"device_bytes": self.device_bytes, "host_bytes": self.host_bytes}
            found[VARIABLE] = json.dumps({name: size for name, size in sizes.items() if size is not None})
        return found
