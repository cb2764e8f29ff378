"""Every multimodal language model of transformers is served exactly, or refused for a stated reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from family_results import note
from tiny_zoo import ZOO
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from vitcache.adapters.families import FAMILIES
from vitcache.adapters.refused_models import REFUSED
from vitcache.adapters.transformers import attach

pytestmark = pytest.mark.transformers

CLASSES = {
    **MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    **MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    # Models that the mappings lack: one generates images, and one has a mapping of its own.
    "glm_image": "GlmImageForConditionalGeneration",
    "musicflamingo": "MusicFlamingoForConditionalGeneration",
}
EXACT = set(ZOO)
OTHERS = sorted(CLASSES.keys() - EXACT)

# Model types whose default config makes no model, with the values that it lacks.
CONFIGS: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 0}},
    "emu3": {"vocabulary_map": {"<image>": 0}},
    "vision-encoder-decoder": {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}},
}


def make_model(model_type: str) -> nn.Module:
    """Return the model of a model type's default config, without memory."""
    with torch.device("meta"):
        return getattr(transformers, CLASSES[model_type])(
            CONFIG_MAPPING[model_type](**CONFIGS.get(model_type, {}))
        )


@pytest.mark.parametrize("model_type", OTHERS)
def test_attach_model_that_no_test_proves_is_refused_with_its_name_and_the_reason(model_type: str) -> None:
    model = make_model(model_type)
    before = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(TypeError, match="cannot be attached: ") as refusal:
        attach(model)
    assert [dict(vars(module)) for module in model.modules()] == before
    message = str(refusal.value)
    assert message.startswith(f"{type(model).__name__} (model type {model_type!r})")
    note(model_type=model_type, cls=CLASSES[model_type], refused=message.partition("cannot be attached: ")[2])


def test_each_family_by_name_is_in_the_zoo_and_is_not_refused() -> None:
    owners = {"t5gemma2_encoder"}  # the encoder of t5gemma2
    assert FAMILIES.keys() - owners <= EXACT
    assert not REFUSED.keys() & {*FAMILIES, *EXACT}
