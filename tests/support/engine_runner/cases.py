"""The engines that `make engines` runs. Each is one process; several tests may use its result."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from engine_runner.device import runs_on_gpu
from engine_runner.printed import printed_options
from engine_runner.tiny_models import FAMILIES

# Bytes of a page of 16 rows in bfloat16.
PAGE_BYTES = {family.name: 16 * family.columns * 2 for family in FAMILIES.values()}
# The rows of vLLM's own encoder cache: about 17 of the 34 images.
WHOLE = 512
CHUNK = 64
CONNECTOR = "VitCacheConnector"
# In place of the address of a store: this environment variable has the address of the run.
STORE = "STORE_OF_THE_RUN"
MANAGER = "vitcache.adapters.vllm.VitCacheManager"


@dataclass(frozen=True)
class Case:
    """One engine: its model, options and requests.

    `steps` are functions of `child`, called in order. `connector` adds settings of the connector, `settings`
    replaces options of `LLM`, and `environment` adds variables. Sizes are in pages, as the bytes of a page
    depend on the model.
    """

    name: str
    model: str = "qwen3"
    mode: str = "stock"
    model_runner: int = 1
    num_batched_tokens: int = WHOLE
    device_pages: int = 24
    host_pages: int = 256
    steps: tuple[str, ...] = ("chat",)
    limit_s: float = 300
    connector: dict[str, Any] = field(default_factory=dict, hash=False)
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    def options(self) -> dict[str, Any]:
        """The options of `LLM`, without the model."""
        options: dict[str, Any] = {
            "max_model_len": 1024,
            "max_num_batched_tokens": self.num_batched_tokens,
            "max_num_seqs": 4,
            "enforce_eager": True,
            "dtype": "bfloat16",
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "kv_cache_memory_bytes": 64 << 20,
            "limit_mm_per_prompt": {"image": 4, "video": 0},
            **FAMILIES[self.model].options,
        }
        if self.mode == "vitcache":
            connector = dict(self.connector)
            if connector.get("mooncake") == STORE:
                connector["mooncake"] = os.environ[STORE]
            options |= plug_in(self.model, self.device_pages, self.host_pages, **connector)
        if self.model_runner == 2:
            options["kernel_config"] = {"enable_jit_warmup": False}
        return options | self.settings

    def variables(self) -> dict[str, str]:
        """The environment variables of the process, beside those of every engine."""
        variables = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
        if self.model_runner == 2 and runs_on_gpu():
            variables = {"VLLM_USE_V2_MODEL_RUNNER": "1"}
        elif self.model_runner == 2:
            # Triton has no backend for the CPU: its interpreter runs the kernels of Model Runner V2.
            variables = {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        return variables | self.environment


def plug_in(model: str, device_pages: int, host_pages: int, **extra: Any) -> dict[str, Any]:
    """The two options that switch vitcache on."""
    sizes = {"device_bytes": device_pages * PAGE_BYTES[model], "host_bytes": host_pages * PAGE_BYTES[model]}
    return {
        "ec_transfer_config": {
            "ec_connector": CONNECTOR,
            "ec_role": "ec_both",
            "ec_connector_extra_config": {**sizes, **extra},
        },
        "ec_manager_config": {"encoder_cache_manager_cls": MANAGER},
    }


def pair(name: str, **changes: Any) -> list[Case]:
    """The same engine without and with vitcache."""
    return [replace(Case(f"{name}-{mode}", mode=mode), **changes) for mode in ("stock", "vitcache")]


def refused(name: str, **changes: dict[str, Any] | None) -> Case:
    """An engine with wrong options, which must end before it serves. None leaves an option out."""
    options = plug_in("qwen3", 24, 256)
    for option, values in changes.items():
        options[option] |= values or {}
        if values is None:
            del options[option]
    return Case(name, steps=(), settings=options)


def extra(**values: Any) -> dict[str, Any]:
    """Settings of the connector, with these values in place of the right ones."""
    right = plug_in("qwen3", 24, 256)["ec_transfer_config"]["ec_connector_extra_config"]
    return {"ec_connector_extra_config": {**right, **values}}


def pairs_of(model: str) -> list[Case]:
    """The pairs of one family in Model Runner V2: whole prompts, and prompts in chunks."""
    whole = pair(f"{model}-v2-whole", model=model, model_runner=2)
    return [*whole, *pair(f"{model}-v2-chunks", model=model, model_runner=2, num_batched_tokens=CHUNK)]


def disks(name: str, **changes: Any) -> list[Case]:
    """Engines over one disk, to be run in this order, one after the other. The disk of the last one hangs."""
    options = {"disk": f"disks/{name}", "disk_bytes": "64MiB", "weights_name": "weights"}
    cases = [
        Case(f"{name}-first", steps=("recurring",), connector=options),
        Case(f"{name}-second", steps=("again",), connector=options),
        Case(f"{name}-renamed", steps=("again",), connector={**options, "weights_name": "second"}),
        Case(f"{name}-hung", steps=("hung",), connector=options),
    ]
    return [replace(case, mode="vitcache", device_pages=8, **changes) for case in cases]


def stores(name: str, **changes: Any) -> list[Case]:
    """Engines over one store, to be run in this order, one after the other. The last one has no master."""
    options = {"mooncake": STORE, "mooncake_worth": None, "weights_name": name}
    cases = [
        Case(f"{name}-first", steps=("recurring",), connector=options),
        Case(f"{name}-second", steps=("again",), connector=options),
        Case(f"{name}-alone", steps=("alone",), connector={**options, "mooncake": "127.0.0.1:9"}),
    ]
    return [replace(case, mode="vitcache", device_pages=8, **changes) for case in cases]


OTHERS = [name for name in FAMILIES if name != "qwen3"]
UNSPLIT = {"disable_chunked_mm_input": True}
# Each of four requests needs a second block of 128 tokens for its answer.
FEW_BLOCKS = {"kv_cache_memory_bytes": 6 * (128 * 512), "max_model_len": 256}
RESET = ("chat", "reset", "reload")
CASES = {
    case.name: case
    for case in (
        *pair("qwen3-whole", steps=RESET),
        *pair("qwen3-chunks", num_batched_tokens=CHUNK),
        Case("qwen3-printed", settings=printed_options()),
        Case("qwen3-faults", mode="vitcache", device_pages=8, steps=("embeddings", "loss", "reload_alone")),
        # The engines below run with FULL=1, but for `qwen3-v2-whole`, which runs in each `make engines`.
        *(case for name in FAMILIES for case in pairs_of(name)),
        *(case for name in OTHERS for case in pair(f"{name}-whole", model=name)),
        *pair("qwen2_5-chunks", model="qwen2_5", num_batched_tokens=CHUNK),
        # On CUDA and ROCm, vLLM sets this option for Gemma 3, whose image tokens attend to each other.
        *pair("gemma3-v2-unsplit", model="gemma3", model_runner=2, num_batched_tokens=96, settings=UNSPLIT),
        *pair("qwen3-v2-together", model_runner=2, device_pages=12, steps=("together",)),
        *pair("qwen3-v2-preempted", model_runner=2, steps=("long",), settings=FEW_BLOCKS),
        Case("qwen3-v2-merged", mode="vitcache", model_runner=2, connector={"place_rows": False}),
        # Thirteen images of two pages on average, and a device tier that holds one prompt of the chat.
        Case("qwen3-host-of-13", mode="vitcache", device_pages=8, host_pages=26),
        Case("qwen3-no-host", mode="vitcache", host_pages=0),
        Case("qwen3-one-image", mode="vitcache", device_pages=4, host_pages=0),
        Case("qwen3-disabled", mode="vitcache", environment={"VITCACHE_DISABLE": "1"}),
        *disks("qwen3-disk", model_runner=1),
        *disks("qwen3-v2-disk", model_runner=2),
        *stores("qwen3-store", model_runner=1),
        *stores("qwen3-v2-store", model_runner=2),
        refused("device-below-an-item", ec_transfer_config=extra(device_bytes=3 * PAGE_BYTES["qwen3"])),
        refused("no-manager", ec_manager_config=None),
        refused("no-connector", ec_transfer_config=None),
        refused("wrong-role", ec_transfer_config={"ec_role": "ec_producer"}),
        refused("unknown-option", ec_transfer_config=extra(devise_bytes=1)),
        refused("wrong-width", ec_transfer_config=extra(row_width=500)),
    )
}
