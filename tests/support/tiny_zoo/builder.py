"""`builder`: makes a model of random weights from the names of its classes in `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tiny_zoo.configs import tiny_config


def builder(name: str, config: str | None = None, **changes: Any) -> Callable[[], nn.Module]:
    """Return a function that makes an `{name}ForConditionalGeneration` of a `tiny_config` with `changes`.

    The config's class is `{config}Config`; None stands for `name`. The function looks the classes up when it
    is called, because an older `transformers` may lack them.
    """

    def build() -> nn.Module:
        import transformers

        values = tiny_config(getattr(transformers, f"{config or name}Config"), **changes)
        model: nn.Module = getattr(transformers, f"{name}ForConditionalGeneration")(values)
        return model

    return build
