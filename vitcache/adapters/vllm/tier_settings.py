"""`TierSettings`: the tiers below the host tier, read from vLLM's configuration."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitcache.adapters.mooncake_options import DEFAULT_WORTH, to_address, to_worth
from vitcache.adapters.vllm.start_up import option_name
from vitcache.arguments import to_bytes
from vitcache.tiers.disk_tier import DiskTier
from vitcache.tiers.mooncake_tier import MooncakeTier
from vitcache.tiers.protocol import Tier
from vitcache.versions import installed_version

# Of ec_connector_extra_config.
TIER_OPTIONS = ("disk", "disk_bytes", "mooncake", "mooncake_worth", "weights_name")
# Each of these options is a tier, in the order of the tiers.
_TIERS = ("disk", "mooncake")
# The option that another one needs.
_NEEDS = {"disk": "disk_bytes", "disk_bytes": "disk", "mooncake_worth": "mooncake"}
# Pinned memory beside the host tier for rows that are being read from the tiers.
FETCH_BYTES = 256 << 20
FETCH_TIMEOUT_S = 0.1
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class TierSettings:
    """The tiers below the host tier of one instance of vLLM: a disk, a Mooncake store, or both.

    Attributes
    ----------
    weights_name
        Names the weights, and every part of the configuration that the keys of the rows do not name. None: no
        name is known, so neither a later start nor another engine finds the rows.
    why
        The origin of the name, or the reason that it is missing: a part of a line of the log.
    timeout_s
        Most seconds that a request waits for the tiers.
    path, max_bytes
        The directory of the disk, and most bytes of the rows in it. None: without a disk.
    master, worth
        The address of the master of a Mooncake store, and `MooncakeTier.worth`. None: without a store.

    Notes
    -----
    Immutable: any thread may use it.
    """

    weights_name: str | None
    why: str
    timeout_s: float
    path: str | None = None
    max_bytes: int = 0
    master: str | None = None
    worth: float | None = DEFAULT_WORTH

    @property
    def num_tiers(self) -> int:
        """Number of tiers."""
        return (self.path is not None) + (self.master is not None)

    def make(self) -> list[Tier]:
        """Return the tiers, the nearest first. A cache opens them.

        Raises
        ------
        ImportError
            If `master` is given, and Mooncake is not installed.
        """
        tiers: list[Tier] = []
        if self.path is not None:
            tiers.append(DiskTier(self.path, self.max_bytes))
        if self.master is not None:
            tiers.append(MooncakeTier(self.master, worth=self.worth))
        return tiers

    @property
    def line(self) -> str:
        """A line of the log: the rows that a later start and other engines find."""
        places = {"disk": self.path, "mooncake": self.master}
        tiers = " and ".join(f"{name} {place}" for name, place in places.items() if place is not None)
        if self.weights_name is None:
            return (
                f"{tiers}: the rows are not found after a restart or by another engine, because {self.why}; "
                "set weights_name in ec_connector_extra_config, or --revision to a full commit hash"
            )
        return f"{tiers}: later starts and other engines with equal weights find the rows; {self.why}"


def read_tiers(options: Mapping[str, Any], vllm_config: Any) -> TierSettings | None:
    """Read and check the options of the tiers below the host tier. None: without such tiers.

    Raises
    ------
    ValueError
        If an option that another one needs is missing, a text is empty, `mooncake` is not an address,
        `mooncake_worth` is not positive, the host tier is missing, scheduler and only worker are not in one
        process, or vLLM names items by requests.
    TypeError
        If an option has the wrong type.
    """
    given = [name for name in TIER_OPTIONS if options.get(name) is not None]
    if not given:
        return None
    for name in given:
        needed = _NEEDS.get(name, name)
        if needed not in given:
            raise ValueError(f"{option_name(needed)} is missing: {option_name(name)} needs it")
    tiers = [name for name in _TIERS if name in given]
    if not tiers:
        needed = " or ".join(map(option_name, _TIERS))
        raise ValueError(f"{needed} is missing: {option_name('weights_name')} needs one of them")
    tier = option_name(tiers[0])  # for messages: each tier has the same needs
    if not to_bytes(option_name("host_bytes"), options.get("host_bytes", 0), 0):
        raise ValueError(f"{option_name('host_bytes')} is 0, it must be larger: {tier} needs a host tier")
    places: dict[str, Any] = {}
    if "disk" in given:
        max_bytes = to_bytes(option_name("disk_bytes"), options["disk_bytes"], 1)
        places |= {"path": _text(options, "disk"), "max_bytes": max_bytes}
    if "mooncake" in given:
        worth = options.get("mooncake_worth", DEFAULT_WORTH)
        places["master"] = to_address(option_name("mooncake"), options["mooncake"])
        places["worth"] = to_worth(option_name("mooncake_worth"), worth)
    _check_process(getattr(vllm_config, "parallel_config", None), tiers)
    _check_identifiers(vllm_config, tier)
    found, why = _find_name(options, vllm_config)
    weights_name = None if found is None else _complete(found, vllm_config)
    return TierSettings(weights_name, why, FETCH_TIMEOUT_S, **places)


def _text(options: Mapping[str, Any], name: str) -> str:
    value = options[name]
    if not isinstance(value, str):
        raise TypeError(f"{option_name(name)} must be a str, got {value!r} of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{option_name(name)} is empty")
    return value


def _check_process(config: Any, tiers: Sequence[str]) -> None:
    """The scheduler asks the tiers itself, and decides alone. Several ranks could disagree about a fetch."""
    tier = option_name(tiers[0])
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        number = getattr(config, name, 1)
        if number > 1:
            options = ", ".join(name for name in TIER_OPTIONS if name.split("_")[0] in (*tiers, "weights"))
            raise ValueError(f"{name} is {number}, it must be 1 with {tier}: remove the options {options}")
    backend = getattr(config, "distributed_executor_backend", None) or "uni"
    if backend != "uni":
        raise ValueError(
            f"distributed_executor_backend is {backend!r}, it must be 'uni' with {tier}: the scheduler and "
            "the worker must be in one process. On a CPU, vLLM needs VLLM_ENABLE_V1_MULTIPROCESSING=0 for it"
        )


def _check_identifiers(vllm_config: Any, tier: str) -> None:
    """Without both of its caches, vLLM names an item by its request.

    Such names return after a restart, and other engines use them for other images.
    """
    cache_config = getattr(vllm_config, "cache_config", None)
    multimodal = getattr(vllm_config.model_config, "multimodal_config", None)
    gigabytes = getattr(multimodal, "mm_processor_cache_gb", None)
    if gigabytes == 0 and not getattr(cache_config, "enable_prefix_caching", True):
        raise ValueError(
            "mm_processor_cache_gb is 0 and enable_prefix_caching is False: vLLM then names images by their "
            f"requests, so {tier} would return rows of other images. Turn one of them on"
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
