"""`find_model`: a configuration from a file, a folder, a model type or the local Hugging Face cache."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from huggingface_hub import constants
from transformers import Qwen2VLConfig

from vitcache.adapters.row_counts.model_source import find_model

pytestmark = pytest.mark.transformers

HIDDEN = 48


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    Qwen2VLConfig(text_config={"hidden_size": HIDDEN}).save_pretrained(folder)
    return folder


def test_find_model_reads_a_folder_and_a_config_file_with_the_settings_beside_it(folder: Path) -> None:
    for name in (folder, folder / "config.json"):
        source = find_model(str(name))
        assert source.config.text_config.hidden_size == HIDDEN
        assert source.folder == folder


def test_find_model_reads_a_file_of_another_name_without_a_folder(folder: Path) -> None:
    path = (folder / "config.json").rename(folder / "mine.json")
    source = find_model(str(path))
    assert (source.config.text_config.hidden_size, source.folder) == (HIDDEN, None)


def test_find_model_takes_the_default_config_of_a_model_type() -> None:
    source = find_model("qwen2_vl")
    assert source.config.to_dict() == Qwen2VLConfig().to_dict()
    assert (source.is_default, source.folder) == (True, None)


def test_find_model_reads_a_checkpoint_in_the_local_cache(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = find_model("some/model")
    assert (source.config.text_config.hidden_size, source.folder) == (HIDDEN, snapshot)


@pytest.mark.parametrize("name", ["some/model", "missing.json", "/missing", "~", "a b", "", "org//x"])
def test_find_model_that_does_not_exist_raises_an_os_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"is not a file, a folder, a model type|config\.json"):
        find_model(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON: "),
        ("\x80", "config.json is not JSON: "),
        ("[]", "config.json is not a model's configuration: it has no model_type"),
        ('{"model_type": 3}', "config.json is not a model's configuration: it has no model_type"),
        ('{"model_type": "spam"}', "does not know the model type 'spam'"),
        ('{"model_type": "qwen2_vl", "text_config": 3}', "config.json is not a configuration of qwen2_vl: "),
    ],
)
def test_find_model_with_a_wrong_file_raises_value_error_that_names_it(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=str(tmp_path)) as raised:
        find_model(str(tmp_path))
    assert message in str(raised.value)
