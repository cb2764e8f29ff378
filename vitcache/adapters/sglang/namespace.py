"""The namespace of a model of SGLang: the model, and the options that its encoder's output depends on."""

from __future__ import annotations

from typing import Any

import torch

from vitcache.adapters.sglang.engine_modules import server_arguments
from vitcache.keys.namespace import Namespace

# Options of SGLang's server that change the rows of an encoder.
OPTIONS = (
    *("quantization", "dtype", "load_format", "json_model_override_args", "mm_attention_backend"),
    *("modelopt_quant", "rl_on_policy_target"),
)


def namespace_of(model: Any, dtype: torch.dtype) -> Namespace:
    """Return the namespace of a model of this process.

    Parameters
    ----------
    model
        The model whose encoders are called, or None.
    dtype
        The dtype of its rows.
    """
    arguments = server_arguments()
    options = {name: str(getattr(arguments, name, None)) for name in OPTIONS}
    kind = type(model)
    return Namespace(
        str(getattr(arguments, "model_path", "")),
        revision=str(getattr(arguments, "revision", None) or ""),
        processor=str([f"{kind.__module__}.{kind.__qualname__}", *sorted(options.items())]),
        dtype=str(dtype),
    )
