"""`ImageProcessor`: the class and the settings of a model's image processor."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from tiny_zoo import ZOO

from vitcache.adapters.row_counts.image_processor import ImageProcessor
from vitcache.adapters.row_counts.model_source import ModelSource, find_model

pytestmark = pytest.mark.transformers


def save(folder: Path, settings: object) -> ModelSource:
    """Save a configuration and settings of its image processor."""
    ZOO["qwen2_vl"].build().config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return find_model(str(folder))


def processor_of(source: ModelSource) -> ImageProcessor:
    return ImageProcessor(source, source.config)


@pytest.mark.parametrize("suffix", ["", "Fast"])
def test_image_processor_has_the_class_and_the_settings_of_the_file(tmp_path: Path, suffix: str) -> None:
    settings = {"image_processor_type": f"Glm4vImageProcessor{suffix}", "patch_size": 6, "merge_size": 1}
    processor = processor_of(save(tmp_path, settings))
    assert processor.is_saved
    assert processor.name.startswith("Glm4vImageProcessor")
    outputs = processor.process(60, 60)
    rows, columns = outputs["image_grid_thw"][0, 1:].tolist()
    assert outputs["pixel_values"].shape == (rows * columns, 3 * 2 * 6 * 6)


def test_image_processor_of_a_file_without_a_class_has_that_of_the_model_type(tmp_path: Path) -> None:
    assert processor_of(save(tmp_path, {"patch_size": 6})).name.startswith("Qwen2VLImageProcessor")


def test_image_processor_of_a_broken_file_raises_value_error_that_names_the_folder(tmp_path: Path) -> None:
    save(tmp_path, {})
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}: the image processor cannot be read"):
        processor_of(find_model(str(tmp_path)))


def test_image_processor_of_a_model_type_without_one_raises_value_error() -> None:
    with pytest.raises(ValueError, match="no image processor for the model type 'bert'"):
        processor_of(find_model("bert"))


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_image_processor_that_needs_torchvision_raises_import_error_that_names_it() -> None:
    with pytest.raises(ImportError, match="Cohere2VisionImageProcessor needs torchvision"):
        processor_of(find_model("cohere2_vision"))


def test_image_processor_gives_one_picture_that_is_not_of_one_colour() -> None:
    processor = processor_of(ModelSource("qwen2_vl", ZOO["qwen2_vl"].build().config, folder=None))
    first, second = (processor.process(40, 40)["pixel_values"] for _ in range(2))
    assert torch.equal(first, second)
    assert first.unique().numel() > 1
