"""`processor_fingerprint`: it changes with the class, the settings, the parts and the package versions."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from vitcache import processor_fingerprint
from vitcache.adapters import fingerprint


class PilProcessor:
    """Has the method of transformers' processors that the fingerprint reads."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def to_json_string(self) -> str:
        return json.dumps(self.settings, indent=2, sort_keys=True)


class TorchvisionProcessor(PilProcessor):
    """Has the same settings. A real torchvision processor resizes to other pixels than a PIL processor."""


class Holder(PilProcessor):
    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.__dict__.update(parts)


def test_fingerprints_of_equal_settings_are_equal() -> None:
    first, second = PilProcessor(size=2, mean=[0.5]), PilProcessor(mean=[0.5], size=2)
    assert processor_fingerprint(first) == processor_fingerprint(second)


def test_fingerprints_of_other_settings_classes_or_parts_differ() -> None:
    fingerprints = [
        processor_fingerprint(processor)
        for processor in (
            PilProcessor(size=2),
            PilProcessor(size=3),
            PilProcessor(size="2"),
            TorchvisionProcessor(size=2),
            Holder(image_processor=PilProcessor(size=2)),
            Holder(image_processor=TorchvisionProcessor(size=2)),
            Holder(image_processor=PilProcessor(size=2), video_processor=PilProcessor(size=2)),
            Holder(video_processor=PilProcessor(size=2)),
        )
    ]
    assert len(set(fingerprints)) == len(fingerprints)


@pytest.mark.parametrize("package", ["transformers", "torchvision", "pillow", "torch", "numpy"])
def test_fingerprint_changes_with_the_version_of_a_package(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    processor = PilProcessor(size=2)
    before = processor_fingerprint(processor)
    monkeypatch.setattr(fingerprint, "version", lambda name: "0" if name == package else "1")
    other = processor_fingerprint(processor)
    monkeypatch.setattr(fingerprint, "version", lambda name: "1")
    assert len({before, other, processor_fingerprint(processor)}) == 3


def test_fingerprint_of_a_missing_package_has_the_version_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise fingerprint.PackageNotFoundError(name)

    monkeypatch.setattr(fingerprint, "version", version)
    assert set(json.loads(processor_fingerprint(PilProcessor()))["versions"].values()) == {None}


def test_fingerprint_of_an_object_without_to_json_string_raises() -> None:
    with pytest.raises(TypeError, match="processor must have a method to_json_string, object has none"):
        processor_fingerprint(object())


def test_processor_fingerprint_import_loads_no_heavy_package() -> None:
    code = "import vitcache, sys; vitcache.processor_fingerprint; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "PIL", "numpy"} & set(done.stdout.split())


@pytest.mark.transformers
def test_fingerprint_of_a_transformers_processor_has_class_and_settings() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    from vitcache.demo.model import SIZES, build_processor

    tiny, same, large = (build_processor(SIZES[size]) for size in ("tiny", "tiny", "8b"))
    assert processor_fingerprint(tiny) == processor_fingerprint(same)
    assert processor_fingerprint(tiny) != processor_fingerprint(large)
    described = json.loads(processor_fingerprint(tiny))["processor"]
    assert described["class"].endswith("Qwen2VLImageProcessorPil")
    assert described["settings"]["patch_size"] == 16
    same.size = large.size
    assert processor_fingerprint(same) == processor_fingerprint(large)
