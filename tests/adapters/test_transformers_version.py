"""`attach` warns once per process about a version of transformers that vitcache does not support."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

from tiny_zoo import ZOO

import vitcache
from vitcache.adapters import transformers as attach_module
from vitcache.adapters import transformers_version as module
from vitcache.versions import SUPPORTED

pytestmark = pytest.mark.transformers
FIRST, LAST = SUPPORTED["transformers"]


@pytest.fixture(autouse=True)
def new_process() -> None:
    """Forget earlier warnings."""
    module._warn_once.cache_clear()


@pytest.mark.parametrize("installed", ["5.16.2", "5.24.0", "6.0"])
def test_attach_with_an_unsupported_version_warns_once(
    installed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attach_module, "transformers_version", installed)
    with caplog.at_level(logging.WARNING, "vitcache.adapters"):
        for _ in range(2):
            vitcache.attach(ZOO["qwen2_vl"].build(), device_bytes="1MiB").detach()
    [record] = [record for record in caplog.records if "transformers is" in record.getMessage()]
    assert record.name == "vitcache.adapters"
    assert record.levelno == logging.WARNING
    assert f"transformers is {installed}, vitcache supports {FIRST} to {LAST}" in record.getMessage()


@pytest.mark.parametrize("installed", [f"{FIRST}.0", f"{LAST}.3"])
def test_attach_with_a_supported_version_does_not_warn(
    installed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attach_module, "transformers_version", installed)
    with caplog.at_level(logging.WARNING):
        vitcache.attach(ZOO["qwen2_vl"].build(), device_bytes="1MiB").detach()
    assert caplog.records == []


def test_demo_with_an_unsupported_version_shows_the_warning() -> None:
    pytest.importorskip("rich")
    pytest.importorskip("skimage")
    code = (
        "import sys; from vitcache.adapters import transformers as module; "
        "module.transformers_version = '99.1'; "
        "from vitcache.__main__ import main; sys.exit(main(['demo', '--turns', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert done.stderr.count("transformers is 99.1") == 1
