"""The plug-in and the settings against the released vLLM: its factory, its version, its configuration."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import torch
from vllm.config import ECTransferConfig
from vllm.config.ec_manager_config import EncoderCacheManagerConfig
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorRole
from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory

from vitcache.adapters.vllm import VitCacheConnector, plugin
from vitcache.adapters.vllm.connector import OrdersMetadata
from vitcache.adapters.vllm.orders import StepOrders, StepReport
from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.start_up import MANAGERS


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The registry of the released factory without vitcache's connector."""
    names = {name: load for name, load in ECConnectorFactory._registry.items() if name != plugin.CONNECTOR}
    monkeypatch.setattr(ECConnectorFactory, "_registry", names)
    return names


def test_register_adds_one_name_to_the_released_factory(registry: dict[str, object]) -> None:
    before = set(registry)
    plugin.register()
    plugin.register()
    assert set(registry) == {*before, "VitCacheConnector"}


def test_register_loads_no_connector_before_the_factory_needs_it(registry: dict[str, object]) -> None:
    plugin.register()
    load = registry["VitCacheConnector"]
    assert callable(load)
    names = {value for value in (load.__closure__ or ()) for value in [value.cell_contents]}
    assert names == {"vitcache.adapters.vllm.connector", "VitCacheConnector"}


def test_vllm_version_is_a_tested_one() -> None:
    assert plugin.vllm_version() in plugin.TESTED_VERSIONS
    plugin.check_version()


@pytest.mark.parametrize("is_disabled", [False, True])
def test_register_of_an_untested_version_needs_a_disabled_connector(
    is_disabled: bool, registry: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "vllm_version", lambda: "0.99.0")
    monkeypatch.setenv("VITCACHE_DISABLE", "1" if is_disabled else "0")
    plugin.register()
    assert ("VitCacheConnector" in registry) == is_disabled


def config(manager: str | None = MANAGERS[0], role: str = "ec_both", **options: object) -> SimpleNamespace:
    transfer = ECTransferConfig(
        ec_connector="VitCacheConnector",
        ec_role=role,
        ec_connector_extra_config={"device_bytes": "1MiB", **options},
    )
    text = SimpleNamespace(hidden_size=64)
    model = SimpleNamespace(
        model="m", revision=None, dtype=torch.float32, hf_text_config=text, hf_config=SimpleNamespace()
    )
    return SimpleNamespace(
        ec_transfer_config=transfer,
        ec_manager_config=EncoderCacheManagerConfig(encoder_cache_manager_cls=manager),
        model_config=model,
    )


@pytest.mark.parametrize("manager", MANAGERS)
def test_settings_read_the_released_configuration_classes(manager: str) -> None:
    settings = Settings.from_config(config(manager))
    assert (settings.row_width, settings.device_pages, settings.widths) == (64, 256, {})


@pytest.mark.parametrize("manager", [None, "vllm.v1.core.encoder_cache_manager.EncoderCacheManager"])
def test_settings_refuse_the_managers_of_vllm(manager: str | None) -> None:
    with pytest.raises(ValueError, match="encoder_cache_manager_cls is"):
        Settings.from_config(config(manager))


@pytest.mark.parametrize("role", ["ec_producer", "ec_consumer"])
def test_settings_refuse_a_role_that_only_stores_or_only_loads(role: str) -> None:
    with pytest.raises(ValueError, match=f"ec_role is '{role}', it must be 'ec_both'"):
        Settings.from_config(config(role=role))


def test_widths_that_vllm_has_measured_are_checked() -> None:
    measured = config()
    measured.ec_transfer_config.mm_encoder_output_widths = {"image": 256}
    with pytest.raises(ValueError, match="'image' have width 256"):
        Settings.from_config(measured)
    measured.ec_transfer_config.ec_connector_extra_config["row_width"] = 256
    assert Settings.from_config(measured).width_of("image") == 256


@pytest.mark.parametrize("options", [{"accept_embeds": "yes"}, {"devise_bytes": 1}])
def test_disabled_connector_starts_with_wrong_options(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = config(None, **options)
    with pytest.raises((TypeError, ValueError)):
        VitCacheConnector(wrong, ECConnectorRole.SCHEDULER)
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    connector = VitCacheConnector(wrong, ECConnectorRole.SCHEDULER)
    item = SimpleNamespace(data={"image_embeds": None})
    request = SimpleNamespace(request_id="r", mm_features=[item])
    assert not connector.ensure_cache_available(request, 0)  # as without vitcache's role
    assert connector.take_unavailable_requests() == {"r"}


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_reports_counters(rank: int) -> None:
    """A time that is known one step later on another rank would count twice."""
    made = config()
    made.parallel_config = SimpleNamespace(rank=rank)
    connector = VitCacheConnector(made, ECConnectorRole.WORKER)
    report = StepReport(3, 0, encoded_rows=4, counts={"encode_seconds": 0.002})
    connector._store = SimpleNamespace(end=lambda: report)
    connector.bind_connector_metadata(OrdersMetadata(StepOrders()))
    sent = connector.build_connector_worker_meta()
    assert sent is not None
    expected = ({"encode_seconds": 0.002}, 4) if rank == 0 else ({}, 0)
    assert (sent.report.counts, sent.report.encoded_rows) == expected
