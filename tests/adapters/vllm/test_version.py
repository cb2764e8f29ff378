"""The plug-in without vLLM: versions that were not tested are refused, and its import is light."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any, ClassVar

import pytest

from vitcache.adapters.vllm import plugin


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a version the installed one. The registry of the factory is returned."""
    monkeypatch.delenv(plugin.ANY_VERSION, raising=False)
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "propagate", True)
    plugin._warn.cache_clear()

    def install(found: str) -> dict[str, Any]:
        monkeypatch.setattr(plugin, "version", lambda name: found)
        registry: dict[str, Any] = {}

        class ECConnectorFactory:
            _registry = registry

            @staticmethod
            def register_connector(name: str, module: str, cls: str) -> None:
                assert name not in registry
                registry[name] = (module, cls)

        class ModelRegistry:
            models: ClassVar[dict[str, Any]] = {}

        path = "vllm.distributed.ec_transfer.ec_connector.factory"
        for parent in (path.rsplit(".", number)[0] for number in range(path.count(".") + 1)):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        sys.modules[path].ECConnectorFactory = ECConnectorFactory  # type: ignore[attr-defined]
        sys.modules["vllm"].ModelRegistry = ModelRegistry  # type: ignore[attr-defined]
        return registry

    return install


@pytest.mark.parametrize("found", ["0.33.0", "0.33.0+cpu"])
def test_register_of_a_tested_version_is_idempotent(install: Any, found: str) -> None:
    registry = install(found)
    plugin.register()
    plugin.register()
    assert registry == {"VitCacheConnector": ("vitcache.adapters.vllm.connector", "VitCacheConnector")}


@pytest.mark.parametrize("found", ["0.32.0", "0.33.1", "0.33.0rc1", "0.33.0.post1", "1.0"])
def test_register_of_another_version_logs_one_line_and_registers_nothing(
    install: Any, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = install(found)
    plugin.register()
    assert registry == {}
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.name == "vllm.vitcache"
    for text in (found, "0.33.0", "VITCACHE_VLLM_ANY_VERSION=1"):
        assert text in record.getMessage()


def test_check_version_raises_the_line_that_register_logs(
    install: Any, caplog: pytest.LogCaptureFixture
) -> None:
    install("0.34.0")
    plugin.register()
    with pytest.raises(RuntimeError) as caught:
        plugin.check_version()
    assert [str(caught.value)] == caplog.messages


def test_any_version_is_accepted_with_one_warning(
    install: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = install("0.34.0")
    monkeypatch.setenv(plugin.ANY_VERSION, "1")
    plugin.register()
    plugin.check_version()
    assert list(registry) == ["VitCacheConnector"]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "vLLM is 0.34.0, vitcache was tested with vLLM 0.33.0" in record.getMessage()


@pytest.mark.parametrize("value", ["", "0", "true"])
def test_any_version_needs_the_value_1(install: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install("0.34.0")
    monkeypatch.setenv(plugin.ANY_VERSION, value)
    with pytest.raises(RuntimeError, match=r"vLLM is 0\.34\.0"):
        plugin.check_version()


def test_vllm_version_of_a_source_tree_is_that_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    module = ModuleType("vllm")
    module.__version__ = "0.33.0+cu129"  # type: ignore[attr-defined]
    monkeypatch.setattr(plugin, "version", missing)
    monkeypatch.setitem(sys.modules, "vllm", module)
    assert plugin.vllm_version() == "0.33.0"


def test_import_of_the_plugin_loads_neither_torch_nor_the_native_module() -> None:
    code = (
        "import sys, vitcache.adapters.vllm, vitcache.adapters.vllm.plugin as p; "
        "from vitcache.adapters.vllm import register; assert register is p.register; "
        "print(*sorted(m for m in sys.modules if m.startswith(('vitcache', 'torch', 'numpy', 'vllm'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "vitcache",
        "vitcache._version",
        "vitcache.adapters",
        "vitcache.adapters.disabling",
        "vitcache.adapters.vllm",
        "vitcache.adapters.vllm.plugin",
        "vitcache.device",
        "vitcache.device.locks",
        "vitcache.lazy",
    ]
