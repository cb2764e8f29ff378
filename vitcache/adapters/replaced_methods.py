"""The methods beside `get_*_features` that `attach` replaces, so that lazy features reach a merge."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn

from vitcache.adapters.arguments_by_name import ArgumentsByName
from vitcache.adapters.lazy_features import LazyFeatures
from vitcache.adapters.running_call import ThreadState

logger = logging.getLogger("vitcache.adapters")

PRE_ENCODE = "_prepare_multimodal_encoder_kwargs_for_generation"
"""The method of transformers 5.18 and later in which `generate` encodes items, before its first forward."""

MERGE = "inputs_merger"


class ReplacedMethod:
    """An attribute of a module that replaces a method of its class, from `install` to `remove`."""

    def __init__(self, module: nn.Module, name: str, thread: ThreadState) -> None:
        self._module, self._name, self._thread = module, name, thread
        self._earlier = vars(module).get(name)
        self._stock = getattr(module, name)

    def install(self) -> None:
        """Replace the method."""
        setattr(self._module, self._name, self)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, by deepcopy or pickle, gets its own stock method in place of this object."""
        return getattr, (self._module, self._name)

    def remove(self) -> None:
        """Restore the stock method, unless the attribute was replaced again."""
        if vars(self._module).get(self._name) is self:
            restore(self._module, self._name, self._earlier)


class PreEncoding(ReplacedMethod):
    """Replaces `PRE_ENCODE`: the stock methods that it calls may return lazy features."""

    @classmethod
    def of(cls, model: nn.Module, owner: nn.Module, thread: ThreadState) -> list[PreEncoding]:
        """Return a replacement for the model with `generate` whose base model is `owner`, if there is one."""
        if "mm_encoder_outputs" not in inspect.signature(owner.forward).parameters:
            return []
        for module in model.modules():
            if hasattr(module, "generate") and getattr(module, "base_model", None) is owner:
                if callable(getattr(module, PRE_ENCODE, None)):
                    return [cls(module, PRE_ENCODE, thread)]
                logger.warning(
                    "%s of this release of transformers has no %s: in generate, rows of images are assembled "
                    "and merged by the stock forward",
                    type(module).__name__,
                    PRE_ENCODE,
                )
        return []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Encode the items of `generate`."""
        model: Any = self._module
        # The forward of `torch.compile` would trace lazy features.
        is_traced = torch.compiler.is_compiling() or is_compiled(model) or is_compiled(model.base_model)
        if is_traced or torch.is_grad_enabled():
            return self._stock(*args, **kwargs)
        try:
            self._thread.pre_encodes = True
            return self._stock(*args, **kwargs)
        finally:
            self._thread.pre_encodes = False


class PlacedMerge(ReplacedMethod):
    """Replaces a merge of SmolVLM that does not call `masked_scatter`, in releases before 5.23.

    The stock method raises for wrong numbers of rows, and merges features that cannot be placed.
    """

    @classmethod
    def of(cls, owner: nn.Module, thread: ThreadState) -> list[PlacedMerge]:
        """Return a replacement for the merge of `owner`, if the class has one of this kind."""
        merge = getattr(type(owner), MERGE, None)
        code = getattr(merge, "__code__", None)  # None: not a plain function
        if code is None or "masked_scatter" in code.co_names:
            return []
        return [cls(owner, MERGE, thread)]

    def __init__(self, module: nn.Module, name: str, thread: ThreadState) -> None:
        super().__init__(module, name, thread)
        self._bind = ArgumentsByName(self._stock)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Merge as the stock method does."""
        arguments, call = self._bind(args, kwargs), self._thread.call
        ids, features = arguments["input_ids"], arguments["image_hidden_states"]
        if call is not None and isinstance(features, LazyFeatures) and ids is not None:
            config: Any = self._module.config
            mask = (ids == config.image_token_id).unsqueeze(-1)
            placed = call.place(arguments["inputs_embeds"], mask, features)
            if placed is not NotImplemented:
                return placed
        return self._stock(*args, **kwargs)


def restore(module: nn.Module, name: str, earlier: Any) -> None:
    """Set an attribute of a module to its earlier value, in one step. None: it had none of its own."""
    if earlier is None:
        vars(module).pop(name, None)  # a caller may have deleted it
    else:
        setattr(module, name, earlier)


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of the module runs a function of `torch.compile`."""
    return (
        "_orig_mod" in module._modules
        or module._compiled_call_impl is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
    )
