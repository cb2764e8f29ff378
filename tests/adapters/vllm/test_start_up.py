"""check_deployment: an instance of vLLM that vitcache cannot serve is refused, and the message says why."""

from __future__ import annotations

from types import SimpleNamespace as Namespace
from typing import Any

import pytest
import torch

from vitcache.adapters.vllm.start_up import MANAGERS, check_deployment


def config(**changed: Any) -> Any:
    """A configuration that is accepted, with some parts changed."""
    parts = {
        "ec_transfer_config": Namespace(ec_connector="VitCacheConnector", ec_role="ec_both"),
        "ec_manager_config": Namespace(encoder_cache_manager_cls=MANAGERS[0], manager_config={}),
        "model_config": model(),
        "device_config": Namespace(device_type="cuda"),
    }
    return Namespace(**{**parts, **changed})


def model(**changed: Any) -> Any:
    multimodal = Namespace(mm_encoder_only=False)
    return Namespace(
        **{"model": "m", "is_encoder_decoder": False, "multimodal_config": multimodal, **changed}
    )


def transfer(connector: str = "VitCacheConnector", role: str = "ec_both") -> Any:
    return Namespace(ec_connector=connector, ec_role=role)


def manager(path: str | None, options: dict[str, Any] | None = None, cls: Any = None) -> Any:
    return Namespace(
        encoder_cache_manager_cls=path,
        manager_config=options or {},
        get_encoder_cache_manager_obj=lambda: cls,
    )


def test_check_deployment_accepts_a_complete_configuration() -> None:
    check_deployment(config())
    check_deployment(config(device_config=Namespace(device_type="cpu")))


def test_check_deployment_accepts_pipelines_and_pooling_models_with_model_runner_v2() -> None:
    stages = Namespace(pipeline_parallel_size=2)
    pooling = model(runner_type="pooling")
    check_deployment(config(use_v2_model_runner=True, parallel_config=stages, model_config=pooling))


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_check_deployment_accepts_model_runner_v1_without_a_pipeline(tensor_parallel_size: int) -> None:
    ranks = Namespace(pipeline_parallel_size=1, tensor_parallel_size=tensor_parallel_size)
    check_deployment(
        config(use_v2_model_runner=False, parallel_config=ranks, model_config=model(runner_type="generate"))
    )


@pytest.mark.parametrize("path", MANAGERS)
def test_check_deployment_accepts_both_paths_of_the_manager(path: str) -> None:
    check_deployment(config(ec_manager_config=manager(path)))


def test_check_deployment_accepts_a_subclass_of_the_manager() -> None:
    package, _, name = MANAGERS[1].rpartition(".")
    ours = type(name, (), {"__module__": package})
    check_deployment(config(ec_manager_config=manager("a.Subclass", cls=type("Subclass", (ours,), {}))))


def test_check_deployment_skips_parts_that_a_hand_made_configuration_lacks() -> None:
    check_deployment(
        Namespace(ec_transfer_config=Namespace(ec_role="ec_both"), model_config=Namespace(model="m"))
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ec_transfer_config": None}, r"ec_transfer_config is None.*--ec-transfer-config"),
        ({"ec_transfer_config": transfer(connector="ECCPUConnector")}, "ec_connector is 'ECCPUConnector'"),
        ({"ec_transfer_config": transfer(role="ec_producer")}, "is 'ec_producer', it must be 'ec_both'"),
        ({"ec_transfer_config": transfer(role="ec_consumer")}, "is 'ec_consumer', it must be 'ec_both'"),
        ({"ec_manager_config": manager(None)}, r"cls is None, it must be .*Add --ec-manager-config"),
        ({"ec_manager_config": manager("other.Manager", cls=dict)}, "cls is 'other.Manager', it must be"),
        (
            {"ec_manager_config": manager(MANAGERS[0], {"cache_rows": 4})},
            r"manager_config is \{'cache_rows': 4\}, it must be empty.*device_bytes",
        ),
        ({"model_config": model(is_encoder_decoder=True)}, "model is 'm', an encoder-decoder model"),
        ({"model_config": model(multimodal_config=None)}, "model is 'm', which has no multimodal encoder"),
        (
            {"model_config": model(multimodal_config=Namespace(mm_encoder_only=True))},
            "mm_encoder_only is True, it must be False",
        ),
        (
            {"use_v2_model_runner": False, "parallel_config": Namespace(pipeline_parallel_size=2)},
            "pipeline_parallel_size is 2, it must be 1 with Model Runner V1.*VLLM_USE_V2_MODEL_RUNNER=1",
        ),
        (
            {"use_v2_model_runner": False, "model_config": model(runner_type="pooling")},
            "runner_type is 'pooling', which Model Runner V1 cannot serve.*VLLM_USE_V2_MODEL_RUNNER=1",
        ),
        ({"device_config": Namespace(device_type="xpu")}, r"device type is 'xpu', .*'cuda', 'cpu'"),
    ],
)
def test_check_deployment_refuses_a_wrong_part_and_names_it(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_deployment(config(**changed))


def test_check_deployment_refuses_rocm_which_vllm_names_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(ValueError, match="device type is 'rocm'"):
        check_deployment(config())


def test_flag_of_the_message_is_the_flag_of_the_page() -> None:
    with pytest.raises(ValueError, match="Add --ec-manager-config") as caught:
        check_deployment(config(ec_manager_config=manager(None)))
    flag = '--ec-manager-config \'{"encoder_cache_manager_cls":"vitcache.adapters.vllm.VitCacheManager"}\''
    assert flag in str(caught.value)
