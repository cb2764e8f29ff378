"""`WeightlessModel`: a stock model that computes the shapes of its outputs, without weights.

Its tensors are PyTorch's fake tensors: they have a shape, a dtype and a device, but no memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WeightlessModel:
    """The base model of a configuration: `model` has all its modules, and its parameters have no memory.

    Examples
    --------
    A model of 8 billion parameters encodes an image of 16 patches, which become 4 rows:

    >>> import torch
    >>> from transformers import Qwen2VLConfig
    >>> from vitcache.adapters.row_counts.weightless_model import WeightlessModel
    >>> weightless = WeightlessModel(Qwen2VLConfig(), torch.bfloat16)
    >>> with weightless.running():
    ...     output = weightless.model.get_image_features(torch.zeros(16, 1176), torch.tensor([[1, 4, 4]]))
    >>> [tuple(rows.shape) for rows in output.pooler_output]
    [(4, 3584)]
    """

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        from transformers import MODEL_MAPPING, AutoModel, AutoModelForImageTextToText

        # transformers lists a base model of most configurations, and only a model with a head of the rest.
        auto = AutoModel if type(config) in MODEL_MAPPING else AutoModelForImageTextToText
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        # Two steps, as transformers loads checkpoints: constructors may read values of tensors on the CPU,
        # which a fake tensor does not have.
        with torch.device("meta"):
            model = auto.from_config(config, dtype=dtype)
        with self._mode:
            self.model: nn.Module = model.to_empty(device="cpu").eval()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the ``with`` block, the model can be called. Its outputs are fake tensors.

        Pixels may be plain tensors. Operations whose inputs are all plain tensors, such as grids, positions
        and masks, compute their values. PyTorch's log of failed operations is off: the error is raised.
        """
        logger = logging.getLogger(fake_tensor.__name__)
        was_disabled, logger.disabled = logger.disabled, True
        try:
            with torch.no_grad(), _Shapes(self._mode):
                yield
        finally:
            logger.disabled = was_disabled


class _Shapes(TorchDispatchMode):
    """Runs operations that have a fake input in the fake mode, and all other operations as usual."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _without_masks(args[1]), *args[2:])
        with self._mode:
            return func(*args, **kwargs)


def _without_masks(indices: list[Any]) -> list[Any]:
    """Replace plain masks, which decide the shape of the result, by the indices that they select."""
    plain: list[Any] = []
    for index in indices:
        is_mask = index is not None and index.dtype is torch.bool and not isinstance(index, FakeTensor)
        plain += index.nonzero().unbind(1) if is_mask else [index]
    return plain
