"""`attach` warns once per process about versions of packages that vitcache does not support."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

from tiny_zoo import ZOO

import vitcache
from vitcache.adapters import supported_versions
from vitcache.versions import SUPPORTED

pytestmark = pytest.mark.transformers
FIRST, LAST = SUPPORTED["transformers"]
NEWEST = {package: f"{last}.3" for package, (_, last) in SUPPORTED.items()}


@pytest.fixture(autouse=True)
def new_process() -> None:
    """Forget earlier warnings."""
    supported_versions.warn_unsupported.cache_clear()


def warnings_of_two_attachments(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> list[str]:
    monkeypatch.setattr(supported_versions, "installed_version", installed.get)
    with caplog.at_level(logging.WARNING, "vitcache.adapters"):
        for _ in range(2):
            vitcache.attach(ZOO["qwen2_vl"].build(), device_bytes="1MiB").detach()
    assert {record.name for record in caplog.records} <= {"vitcache.adapters"}
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("version", ["5.16.2", "5.24.0", "6.0"])
def test_attach_with_an_unsupported_transformers_warns_once(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [message] = warnings_of_two_attachments({**NEWEST, "transformers": version}, monkeypatch, caplog)
    assert message.startswith(f"transformers is {version} (vitcache supports {FIRST} to {LAST}, ")
    assert "torch" not in message


def test_attach_with_several_unsupported_packages_names_each_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [message] = warnings_of_two_attachments(
        {"torch": "2.8.1", "triton": "9.0", "transformers": "5.20.0"}, monkeypatch, caplog
    )
    assert [message.count(f"{name} is ") for name in ("torch", "triton", "transformers")] == [1, 1, 0]
    assert "triton is 9.0 (vitcache supports 3.5 to " in message


@pytest.mark.parametrize(
    "installed",
    [
        NEWEST,
        {package: f"{first}.0" for package, (first, _) in SUPPORTED.items()},
        {name: version for name, version in NEWEST.items() if name != "triton"},
    ],
    ids=["newest", "oldest", "no triton"],
)
def test_attach_with_supported_versions_does_not_warn(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of_two_attachments(installed, monkeypatch, caplog) == []


def test_demo_with_an_unsupported_version_shows_the_warning() -> None:
    pytest.importorskip("skimage")
    code = (
        "import sys; from vitcache.adapters import supported_versions; "
        "supported_versions.installed_version = {'transformers': '99.1'}.get; "
        "from vitcache.__main__ import main; sys.exit(main(['demo', '--turns', '1', '--repeats', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert done.stderr.count("transformers is 99.1") == 1
