"""`DiskSettings`: the disk below the host tier, read from vLLM's configuration."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitcache.adapters.vllm.start_up import option_name
from vitcache.arguments import to_bytes
from vitcache.versions import installed_version

DISK_OPTIONS = ("disk", "disk_bytes", "weights_name")  # of ec_connector_extra_config
# Pinned memory beside the host tier for rows that are being read from the disk.
FETCH_BYTES = 256 << 20
FETCH_TIMEOUT_S = 0.1
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class DiskSettings:
    """The disk of one instance of vLLM.

    Attributes
    ----------
    path, max_bytes
        The directory, and most bytes of the rows in it.
    weights_name
        Names the weights, and every part of the configuration that the keys of the rows do not name. None: no
        name is known, so a later start finds none of the rows.
    why
        The origin of the name, or the reason that it is missing: a part of a line of the log.
    timeout_s
        Most seconds that a request waits for the disk.

    Notes
    -----
    Immutable: any thread may use it.
    """

    path: str
    max_bytes: int
    weights_name: str | None
    why: str
    timeout_s: float

    @property
    def line(self) -> str:
        """A line of the log: the rows that a later start finds."""
        if self.weights_name is None:
            return (
                f"disk {self.path}: the rows are not found after a restart, because {self.why}; set "
                "weights_name in ec_connector_extra_config, or --revision to a full commit hash"
            )
        return f"disk {self.path}: a later start with equal weights finds the rows; {self.why}"


def read_disk(options: Mapping[str, Any], vllm_config: Any) -> DiskSettings | None:
    """Read and check the options of the disk. None: without a disk.

    Raises
    ------
    ValueError
        If one of `disk` and `disk_bytes` is missing, a text is empty, `weights_name` is given without `disk`,
        the host tier is missing, scheduler and only worker are not in one process, or vLLM names items
        by requests.
    TypeError
        If an option has the wrong type.
    """
    given = [name for name in DISK_OPTIONS if options.get(name) is not None]
    if not given:
        return None
    for name in ("disk", "disk_bytes"):
        if name not in given:
            raise ValueError(f"{option_name(name)} is missing: {option_name(given[0])} needs it")
    path = _text(options, "disk")
    max_bytes = to_bytes(option_name("disk_bytes"), options["disk_bytes"], 1)
    if not to_bytes(option_name("host_bytes"), options.get("host_bytes", 0), 0):
        raise ValueError(
            f"{option_name('host_bytes')} is 0, it must be larger: {option_name('disk')} needs a host tier"
        )
    _check_process(getattr(vllm_config, "parallel_config", None))
    _check_identifiers(vllm_config)
    found, why = _find_name(options, vllm_config)
    weights_name = None if found is None else _complete(found, vllm_config)
    return DiskSettings(path, max_bytes, weights_name, why, FETCH_TIMEOUT_S)


def _text(options: Mapping[str, Any], name: str) -> str:
    value = options[name]
    if not isinstance(value, str):
        raise TypeError(f"{option_name(name)} must be a str, got {value!r} of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{option_name(name)} is empty")
    return value


def _check_process(config: Any) -> None:
    """The scheduler asks the disk itself, and decides alone. Several ranks could disagree about a fetch."""
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        number = getattr(config, name, 1)
        if number > 1:
            raise ValueError(
                f"{name} is {number}, it must be 1 with {option_name('disk')}: remove the options "
                f"{', '.join(DISK_OPTIONS)}"
            )
    backend = getattr(config, "distributed_executor_backend", None) or "uni"
    if backend != "uni":
        raise ValueError(
            f"distributed_executor_backend is {backend!r}, it must be 'uni' with {option_name('disk')}: the "
            "scheduler and the worker must be in one process. On a CPU, vLLM needs "
            "VLLM_ENABLE_V1_MULTIPROCESSING=0 for it"
        )


def _check_identifiers(vllm_config: Any) -> None:
    """Without both of its caches, vLLM names an item by its request. Such names return after a restart."""
    cache_config = getattr(vllm_config, "cache_config", None)
    multimodal = getattr(vllm_config.model_config, "multimodal_config", None)
    gigabytes = getattr(multimodal, "mm_processor_cache_gb", None)
    if gigabytes == 0 and not getattr(cache_config, "enable_prefix_caching", True):
        raise ValueError(
            "mm_processor_cache_gb is 0 and enable_prefix_caching is False: vLLM then names images by their "
            f"requests, so {option_name('disk')} would return rows of other images. Turn one of them on"
        )


def _find_name(options: Mapping[str, Any], vllm_config: Any) -> tuple[str | None, str]:
    """Return the name of the weights, and its origin or the reason that it is missing."""
    if options.get("weights_name") is not None:
        name = _text(options, "weights_name")
        return name, f"weights_name is {name!r}"
    lora_config = getattr(vllm_config, "lora_config", None)
    if getattr(lora_config, "enable_tower_connector_lora", False):
        return None, "the encoder has LoRA adapters, whose names may change their meaning"
    model_config = vllm_config.model_config
    if os.path.isdir(str(model_config.model)):
        return None, "the model is a directory, whose files may change"
    revision = str(model_config.revision or "")
    if COMMIT.fullmatch(revision):
        return revision, f"the revision is {revision}"
    return None, f"the revision is {revision!r}, not a full commit hash"


def _complete(name: str, vllm_config: Any) -> str:
    """Add the parts of the configuration that change rows, and that may differ between two starts.

    The keys name the model, its revision, its dtype and the options of its encoder (`Settings.namespace`),
    and the options of a request. The image processor is of vLLM and transformers, with options of the engine.
    """
    model_config = vllm_config.model_config
    multimodal = getattr(model_config, "multimodal_config", None)
    parts = {
        "name": name,
        "vllm": installed_version("vllm"),
        "transformers": installed_version("transformers"),
        "mm_processor_kwargs": getattr(multimodal, "mm_processor_kwargs", None),
        "media_io_kwargs": getattr(multimodal, "media_io_kwargs", None),
        "hf_overrides": getattr(model_config, "hf_overrides", None),
        "code_revision": getattr(model_config, "code_revision", None),
        "load_format": getattr(getattr(vllm_config, "load_config", None), "load_format", None),
    }
    return json.dumps(parts, sort_keys=True, default=str)
