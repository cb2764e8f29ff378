"""The engines that the bench compares, and their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitcache.bench.engines.conversation import SIZES, rows_of
from vitcache.bench.engines.model_folder import ROW_PIXELS, WITH_WEIGHTS

STOCK, CONNECTOR, PLACED, CPU_OFFLOAD = "stock", "vitcache, place_rows false", "vitcache", "ECCPUConnector"
NAMES = (STOCK, CONNECTOR, PLACED, CPU_OFFLOAD)
MOST_IMAGES = 3  # of one prompt
DTYPE_BYTES = 2


@dataclass(frozen=True)
class EngineOptions:
    """One engine.

    Parameters
    ----------
    contender
        One of `NAMES`.
    size
        The model: a size of the demo.
    model_runner
        1 or 2, the version of vLLM's model runner.
    cache_rows
        The rows of vLLM's encoder cache.
    device_rows
        The rows of the device tier of vitcache. None: as many as `cache_rows`.
    host_rows
        The rows of the host tier, for a contender that has one. None: eight times as many as `cache_rows`.
    """

    contender: str
    size: str = WITH_WEIGHTS
    model_runner: int = 2
    cache_rows: int = 512
    device_rows: int | None = None
    host_rows: int | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of `LLM`, without the model."""
        from vitcache.demo.model import SIZES as MODELS

        levels = len(MODELS[self.size].vision["deepstack_visual_indexes"])
        row_bytes = MODELS[self.size].text["hidden_size"] * (1 + levels) * DTYPE_BYTES
        pixels = [height * width for height, width in SIZES[self.size]]
        longest = MOST_IMAGES * max(pixels) // ROW_PIXELS + 64
        options: dict[str, Any] = {
            "max_model_len": 2 * longest,
            "max_num_batched_tokens": self.cache_rows,
            "max_num_seqs": 4,
            "enforce_eager": True,
            "dtype": "bfloat16",
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "kv_cache_memory_bytes": 64 << 20 if self.size == WITH_WEIGHTS else 4 << 30,
            "limit_mm_per_prompt": {"image": MOST_IMAGES, "video": 0},
            "mm_processor_kwargs": {"size": {"shortest_edge": min(pixels), "longest_edge": max(pixels)}},
        }
        if self.size != WITH_WEIGHTS:
            options["load_format"] = "dummy"
        if self.model_runner == 2:
            options["kernel_config"] = {"enable_jit_warmup": False}
        return options | self._plug_in(row_bytes)

    def _plug_in(self, row_bytes: int) -> dict[str, Any]:
        if self.contender == STOCK:
            return {}
        host_bytes = (8 * self.cache_rows if self.host_rows is None else self.host_rows) * row_bytes
        if self.contender == CPU_OFFLOAD:
            return {"ec_transfer_config": self._transfer("ECCPUConnector", ec_cpu_bytes=host_bytes)}
        device_rows = self.cache_rows if self.device_rows is None else self.device_rows
        sizes: dict[str, Any] = {"device_bytes": device_rows * row_bytes, "host_bytes": host_bytes}
        if self.contender == CONNECTOR:
            sizes["place_rows"] = False
        return {
            "ec_transfer_config": self._transfer("VitCacheConnector", **sizes),
            "ec_manager_config": {"encoder_cache_manager_cls": "vitcache.adapters.vllm.VitCacheManager"},
        }

    def _transfer(self, connector: str, **extra: Any) -> dict[str, Any]:
        return {"ec_connector": connector, "ec_role": "ec_both", "ec_connector_extra_config": extra}

    def image_rows(self, number: int) -> int:
        """The rows of an image of the conversation."""
        return rows_of(self.size, number)
