"""`RowCounter`: the rows that it computes without weights are the rows that an attached model caches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")

import transformers
from attached import plain_kernels  # noqa: F401
from tiny_zoo import ZOO, ZooModel
from tiny_zoo.zoo_model import num_rows
from torch._subclasses.fake_tensor import FakeTensor

from vitcache.adapters.families import FAMILIES
from vitcache.adapters.row_counts.image_rows import RowCounter
from vitcache.adapters.row_counts.model_source import ModelSource, find_model
from vitcache.adapters.row_counts.weightless_model import WeightlessModel
from vitcache.adapters.transformers import attach
from vitcache.cache.embedding_cache import EmbeddingCache

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

SIZES = ((40, 60), (96, 64))
"""Heights and widths of small images: tiny models have small patches, and a row each."""

# The models of the zoo for which the image processor's settings do not follow from the configuration, or for
# whose images the tiny patches need too much memory or time.
NOT_COUNTED = {
    "fuyu": "the model's processor cuts images into patches: the counter refuses it",
    "aria": "images have 490x490 pixels or more, which are 15,000 tiny patches",
    "deepseek_ocr2": "images have 1024x1024 pixels, which are 65,536 tiny patches",
    "unlimited_ocr": "images have 1024x1024 pixels, which are 65,536 tiny patches",
    "perception_lm": "the tower is timm's, so the configuration has no size of an image",
    "gemma3n": "the tower is timm's, so the configuration has no size of an image",
    "dots3_note": "the shapes of grouped products are only known for bfloat16",
    "inkling2": "the sizes of the tiny tower have other names than the settings of the image processor",
    "molmo2": "the sizes of the tiny tower have other names than the settings of the image processor",
}

WITH_IMAGES = [zoo for zoo in ZOO.values() if "image" in zoo.media]


def source_of(zoo: ZooModel) -> ModelSource:
    return ModelSource(zoo.name, zoo.build().config, folder=None)


@pytest.fixture(params=WITH_IMAGES, ids=[zoo.name for zoo in WITH_IMAGES])
def zoo(request: pytest.FixtureRequest) -> ZooModel:
    return request.param


@pytest.mark.parametrize("size", SIZES)
def test_count_gives_the_entries_and_bytes_that_an_attached_model_caches(
    zoo: ZooModel, size: tuple[int, int]
) -> None:
    if not zoo.exists:
        pytest.skip(f"transformers {transformers.__version__} lacks {zoo.lacks}")
    if zoo.name in NOT_COUNTED:
        pytest.skip(NOT_COUNTED[zoo.name])
    try:
        counter = RowCounter(source_of(zoo), torch.float32)
    except ImportError as error:
        if error.name != "torchvision":
            raise
        pytest.skip(str(error))
    counted = counter.count(*size)
    cache = EmbeddingCache(zoo.row_width, dtype=torch.float32, device_bytes=1 << 22)
    owner = zoo.features_owner(zoo.model())
    attach(owner, cache)
    with torch.no_grad():
        output = owner.get_image_features(**counter.arguments(*size))
    pages = sum(map(cache.pages_for, counted.entries))
    stats = cache.stats()
    assert num_rows(output) == sum(counted.entries)
    assert stats.entries == len(counted.entries)
    assert stats.device_bytes == pages * cache.page_rows * counted.row_bytes
    assert (counted.width, counted.dtype) == (cache.row_width, cache.dtype)


def test_every_family_with_images_has_a_model_in_the_test_above() -> None:
    families = {name for name, family in FAMILIES.items() if "image" in family.splits}
    built = {zoo.features_owner(zoo.build()).config.model_type for zoo in WITH_IMAGES if zoo.exists}
    assert families <= built | {zoo.name for zoo in WITH_IMAGES if not zoo.exists}


def test_count_uses_the_saved_settings_of_the_image_processor(tmp_path: Path) -> None:
    source = source_of(ZOO["qwen2_vl"])
    source.config.save_pretrained(tmp_path)
    tower = source.config.vision_config
    merged = tower.patch_size * tower.spatial_merge_size
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": tower.patch_size,
        "merge_size": tower.spatial_merge_size,
        "size": {"shortest_edge": merged**2, "longest_edge": 4 * merged**2},
    }
    small = [settings, {"image_processor": settings}]
    expected = RowCounter(source, torch.float32).count(64, 64).entries
    assert expected > (4,)
    for name, saved in zip(("preprocessor_config.json", "processor_config.json"), small, strict=True):
        (tmp_path / name).write_text(json.dumps(saved))
        counter = RowCounter(find_model(str(tmp_path)), torch.float32)
        assert counter.processor.is_saved
        assert counter.count(64, 64).entries == (4,)
        (tmp_path / name).unlink()
    assert RowCounter(find_model(str(tmp_path)), torch.float32).count(64, 64).entries == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_count_gives_the_dtype_of_the_stock_rows(dtype: torch.dtype) -> None:
    counted = RowCounter(source_of(ZOO["gemma3"]), dtype).count(32, 32)
    assert (counted.dtype, counted.row_bytes) == (dtype, counted.width * dtype.itemsize)


def test_counter_of_a_model_that_cannot_be_cached_raises_with_its_reason() -> None:
    with pytest.raises(TypeError, match="BertModel has no get_image_features, so it cannot be attached"):
        RowCounter(find_model("bert"), torch.float32)


def test_count_of_a_default_config_that_does_not_work_asks_for_that_of_a_checkpoint() -> None:
    """The default Gemma 3 has images of 224x224 pixels, and more rows per image than patches."""
    counter = RowCounter(find_model("gemma3"), torch.float32)
    with pytest.raises(ValueError, match=r"gemma3 cannot encode .*: give the config\.json of a checkpoint$"):
        counter.count(32, 32)


def test_count_of_an_image_that_the_image_processor_refuses_raises() -> None:
    counter = RowCounter(source_of(ZOO["qwen2_vl"]), torch.float32)
    with pytest.raises(ValueError, match=r"cannot encode an image of 1000x1: ValueError: .*aspect ratio"):
        counter.count(1, 1000)


def test_weightless_model_has_parameters_without_memory() -> None:
    model = WeightlessModel(find_model("qwen3_vl").config, torch.bfloat16).model
    parameters = [parameter.data for parameter in model.parameters()]
    assert parameters
    assert all(isinstance(parameter, FakeTensor) for parameter in parameters)
    assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}
