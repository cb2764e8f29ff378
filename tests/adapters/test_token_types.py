"""`token_types` equals the `mm_token_type_ids` of the processors in transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

from tiny_grids import END, IMAGE, START, VIDEO, VIDEO_END, VIDEO_START
from tiny_models import GRID_FAMILIES

from vitcache.adapters import families
from vitcache.adapters.token_types import token_types

pytestmark = pytest.mark.transformers


def config_of(name: str) -> Any:
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    if name.startswith("glm"):
        ids |= {"video_start_token_id": VIDEO_START, "video_end_token_id": VIDEO_END}
    return SimpleNamespace(model_type=name, **ids)


def of_the_processor(name: str, ids: np.ndarray) -> np.ndarray:
    """Call the processor's method without a tokenizer; it reads only these attributes."""
    from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
    from transformers.processing_utils import ProcessorMixin

    processor: Any
    if name.startswith("glm"):
        method: Any = Glm4vProcessor.create_mm_token_type_ids
        processor = SimpleNamespace(image_token_id=IMAGE, video_start_id=VIDEO_START, video_end_id=VIDEO_END)
    else:
        method = ProcessorMixin.create_mm_token_type_ids
        processor = SimpleNamespace(image_token_ids=[IMAGE], video_token_ids=[VIDEO], audio_token_ids=[])
    return np.array(method(processor, ids.tolist()))


def test_token_types_knows_the_tiny_families() -> None:
    assert list(GRID_FAMILIES) == list(families.GRID_FAMILIES)


@pytest.mark.parametrize("name", GRID_FAMILIES)
def test_token_types_of_a_mixed_prompt_are_those_of_the_processor(name: str) -> None:
    family = GRID_FAMILIES[name]
    prompt = family.mixed_prompt(("video", 0), ("image", 0), ("video", 1), ("video", 2), ("image", 1))
    ids = prompt["input_ids"].numpy()
    found = token_types(ids, family.model().base_model.config)
    assert found.tolist() == prompt["mm_token_type_ids"].tolist() == of_the_processor(name, ids).tolist()
    assert set(found[0].tolist()) == {0, 1, 2}
    assert token_types(ids[0], config_of(name)).tolist() == found[0].tolist()


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v"])
def test_token_types_of_random_ids_are_those_of_the_processor(name: str) -> None:
    """Video starts and ends in any order, and without a partner."""
    random = np.random.default_rng(0)
    choices = np.array([1, IMAGE, VIDEO, START, END, VIDEO_START, VIDEO_END])
    for length in (0, 1, 2, 5, 60):
        ids = random.choice(choices, (40, length)).astype(np.int64)
        found = token_types(ids, config_of(name))
        assert found.tolist() == of_the_processor(name, ids).tolist()
        assert (found.shape, found.dtype) == (ids.shape, np.int64)


def test_token_types_refuses_other_families_and_other_types() -> None:
    ids = np.array([1, 2])
    with pytest.raises(TypeError, match=r"model type 'gemma3' are not known; .*: qwen2_vl, .*, glm_ocr$"):
        token_types(ids, config_of("gemma3"))
    with pytest.raises(TypeError, match="ids must be an array of ints, got float64"):
        token_types(ids / 2, config_of("qwen3_vl"))
    with pytest.raises(TypeError, match="ids must be an array of ints, got bool"):
        token_types(ids == 1, config_of("qwen3_vl"))
    with pytest.raises(TypeError, match="ids must be an array of ints, got list"):
        token_types([1, 2], config_of("qwen3_vl"))  # type: ignore[arg-type]
