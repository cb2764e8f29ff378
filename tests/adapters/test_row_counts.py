"""`RowCounter`: the rows that it computes without weights are the rows that an attached model caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from attached import plain_kernels  # noqa: F401
from tiny_zoo import ZOO, ZooModel
from torch import nn

from vitcache.adapters.families import FAMILIES
from vitcache.adapters.row_counts.image_processor import ImageProcessor
from vitcache.adapters.row_counts.image_rows import ImageRows, RowCounter
from vitcache.adapters.row_counts.model_source import ModelSource
from vitcache.adapters.transformers import attach
from vitcache.cache.embedding_cache import EmbeddingCache

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

SIZES = ((40, 60), (96, 64))
"""Heights and widths of small images: tiny models have small patches, and a row each."""

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
    source = source_of(zoo)
    counted = RowCounter(source, torch.float32).count(*size)
    with EmbeddingCache(
        zoo.row_width, dtype=torch.float32, device_bytes=1 << 22
    ) as cache:
        owner = zoo.features_owner(zoo.model())
        attach(owner, cache)
        outputs = ImageProcessor(source).process(*size)
        encode(owner, outputs)
        pages = sum(cache.pages_for(num_rows) for num_rows in counted.entries)
        stats = cache.stats()
        assert stats.entries == len(counted.entries)
        assert stats.device_bytes == pages * cache.page_rows * counted.row_bytes
        assert (counted.width, counted.dtype) == (cache.row_width, cache.dtype)
