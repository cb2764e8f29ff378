"""Models that `attach` refuses by name, with the reason."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("transformers")

from tiny_zoo.refused import REFUSED_MODELS

from vitcache.adapters.families import REFUSED
from vitcache.adapters.transformers import attach

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_refused_model_raises_with_its_name_and_the_reason(name: str) -> None:
    with torch.device("meta"):
        model = REFUSED_MODELS[name]()
    message = f"{type(model).__name__} (model type '{name}') cannot be attached: {REFUSED[name]}"
    with pytest.raises(TypeError, match=re.escape(message)):
        attach(model)
