"""Checks of vLLM's configuration: an engine that vitcache cannot serve must not start."""

from __future__ import annotations

from typing import Any

import torch

from vitcache.adapters.vllm.plugin import CONNECTOR

MANAGERS = ("vitcache.adapters.vllm.VitCacheManager", "vitcache.adapters.vllm.manager.VitCacheManager")
FLAG = f'--ec-manager-config \'{{"encoder_cache_manager_cls":"{MANAGERS[0]}"}}\''
DEVICES = ("cuda", "cpu")


def option_name(name: str) -> str:
    """Return how messages name an option of vitcache."""
    return f"ec_connector_extra_config[{name!r}]"


def check_deployment(vllm_config: Any) -> None:
    """Check the connector, its role, the manager, the model and the platform.

    An attribute that a hand-made configuration lacks is not checked. A `VllmConfig` has all of them.

    Raises
    ------
    ValueError
        If the connector or the manager is not vitcache's, the role is not ``"ec_both"``, `manager_config` is
        not empty, the model has no multimodal encoder or is an encoder-decoder, the instance only encodes,
        the model runner drops the workers' reports, or the platform is neither CUDA nor the CPU.
    """
    _check_connector(getattr(vllm_config, "ec_transfer_config", None))
    if hasattr(vllm_config, "ec_manager_config"):
        _check_manager(vllm_config.ec_manager_config)
    _check_model(vllm_config)
    _check_runner(vllm_config)
    _check_platform(getattr(vllm_config, "device_config", None))


def _check_connector(config: Any) -> None:
    if config is None:
        raise ValueError(
            f"ec_transfer_config is None: VitCacheManager needs the connector {CONNECTOR}. Add "
            "--ec-transfer-config"
        )
    name = getattr(config, "ec_connector", CONNECTOR)
    if name != CONNECTOR:
        raise ValueError(f"ec_connector is {name!r}, it must be {CONNECTOR!r}: VitCacheManager needs it")
    if config.ec_role != "ec_both":
        raise ValueError(
            f"ec_role is {config.ec_role!r}, it must be 'ec_both': vitcache stores and loads the rows of one "
            "instance"
        )


def _check_manager(config: Any) -> None:
    path = config.encoder_cache_manager_cls
    if path not in MANAGERS and not _is_subclass(config):
        raise ValueError(
            f"encoder_cache_manager_cls is {path!r}, it must be {MANAGERS[0]!r} or a subclass: {CONNECTOR} "
            f"needs it. Add {FLAG}"
        )
    if config.manager_config:
        raise ValueError(
            f"manager_config is {config.manager_config!r}, it must be empty: VitCacheManager has the size of "
            "device_bytes, an option of ec_connector_extra_config"
        )


def _is_subclass(config: Any) -> bool:
    """Whether the manager is a subclass of `VitCacheManager`, by name: this module imports no vLLM."""
    load = getattr(config, "get_encoder_cache_manager_obj", None)
    manager = None if load is None else load()
    return any(
        f"{each.__module__}.{each.__qualname__}" in MANAGERS for each in getattr(manager, "__mro__", ())
    )


def _check_model(vllm_config: Any) -> None:
    model_config = vllm_config.model_config
    if getattr(model_config, "is_encoder_decoder", False):
        raise ValueError(
            f"model is {model_config.model!r}, an encoder-decoder model: vLLM runs no encoder cache "
            "connector for it"
        )
    multimodal = getattr(model_config, "multimodal_config", model_config)
    if multimodal is None:
        raise ValueError(
            f"model is {model_config.model!r}, which has no multimodal encoder: {CONNECTOR} needs one"
        )
    if getattr(multimodal, "mm_encoder_only", False):
        raise ValueError(
            f"mm_encoder_only is True, it must be False: {CONNECTOR} serves the language model of its own "
            "instance"
        )


def _check_runner(vllm_config: Any) -> None:
    """Model Runner V1 sends the output of a connector from the last pipeline stage, after it has sampled."""
    if getattr(vllm_config, "use_v2_model_runner", True):
        return
    num_stages = getattr(getattr(vllm_config, "parallel_config", None), "pipeline_parallel_size", 1)
    if num_stages > 1:
        raise ValueError(
            f"pipeline_parallel_size is {num_stages}, it must be 1 with Model Runner V1, which drops the "
            f"reports of {CONNECTOR}: set VLLM_USE_V2_MODEL_RUNNER=1, or use --tensor-parallel-size"
        )
    kind = getattr(vllm_config.model_config, "runner_type", None)
    if kind == "pooling":
        raise ValueError(
            f"runner_type is {kind!r}, which Model Runner V1 cannot serve with {CONNECTOR}, whose reports it "
            "drops: set VLLM_USE_V2_MODEL_RUNNER=1"
        )


def _check_platform(config: Any) -> None:
    device = getattr(config, "device_type", None)
    if device == "cuda" and torch.version.hip is not None:
        device = "rocm"  # which vLLM names "cuda", too
    if device is not None and device not in DEVICES:
        raise ValueError(f"the device type is {device!r}, it must be one of {DEVICES}")
