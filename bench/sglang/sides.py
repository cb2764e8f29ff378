"""SGLang's `general_mm_embed_routine` for a scene, as SGLang has released it and with the hooks of vitcache.

SGLang must be importable, and its module of multimodal functions is changed while `open_sides` is open.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.sglang.options import VARIABLE
from vitcache.bench.sglang.models import LanguageModel, VisionModel
from vitcache.bench.sglang.scene import Scene
from vitcache.bench.sglang.turns import Kind, Turns

STOCK, VITCACHE = "stock", "vitcache"
HOOKED = ("prepare_mm_inputs", "embed_mm_inputs")  # functions of SGLang in a step
Functions = Mapping[str, Callable[..., Any]]


class Side:
    """One contender: SGLang's functions in its module, its cache, and the steps of a request.

    `prepare` must be called before each step; `num_steps` counts its calls.
    """

    def __init__(self, scene: Scene, kind: Kind, functions: Functions, cache: Any) -> None:
        from sglang.srt.managers.schedule_batch import Modality

        self.num_steps = 0
        self.model = VisionModel(scene)
        self._language_model = LanguageModel(scene)
        self._scene, self._turns = scene, Turns(scene, kind)
        self._functions, self._cache = functions, cache
        self._options = {"use_deepstack": {Modality.IMAGE: True}} if scene.levels else {}

    def prepare(self) -> None:
        """Put this side's functions and cache in SGLang's modules, and make the objects of a step."""
        from sglang.srt.managers import mm_schedule, mm_utils

        vars(mm_utils).update(self._functions)
        mm_schedule.embedding_cache = self._cache
        self._ids, self._batch = self._turns.next()
        self._routine = mm_utils.general_mm_embed_routine
        self.num_steps += 1

    def __call__(self) -> object:
        """Run the step."""
        return self._routine(
            self._ids, self._batch, self._language_model, multimodal_model=self.model, **self._options
        )

    def is_right(self) -> bool:
        """Run a step, and return whether it has built the rows of a loop over images."""
        self.prepare()
        self()
        embeds, deepstack = self._scene.truth(self._turns.features)
        built = self._language_model.input_embeds
        levels = self._language_model.deepstack
        if self._scene.levels and not _equals(levels, deepstack):
            return False
        return _equals(built, embeds)


@contextmanager
def open_sides(scene: Scene, kind: Kind) -> Iterator[dict[str, Side]]:
    """Yield both sides for a scene. Their caches contain every image after the first step of each.

    Raises RuntimeError if SGLang has not applied a hook of vitcache.
    """
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "0")  # the value 1 needs SGLang's kernels for the CPU
    from sglang.srt.managers import mm_schedule, mm_utils
    from sglang.srt.mem_cache.multimodal_cache import MultiModalStaticCache
    from sglang.srt.runtime_context import get_context

    stock, hooked = functions()
    num_bytes = max(100 << 20, 4 * sum(feature.nbytes for feature in scene.features))
    options_before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = '{"trust_engine_hash": true}' if kind is Kind.ENGINE_HASH else ""
    try:
        with get_context().override_server_args(tp_size=1):
            # vitcache takes these bytes, and reads its options.
            mm_schedule.init_mm_embedding_cache(num_bytes)
            yield {
                STOCK: Side(scene, kind, stock, MultiModalStaticCache(num_bytes)),
                VITCACHE: Side(scene, kind, hooked, mm_schedule.embedding_cache),
            }
    finally:
        vars(mm_utils).update(stock)
        if options_before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = options_before


@cache
def functions() -> tuple[Functions, Functions]:
    """Return SGLang's own functions of a step, and those with the hooks of vitcache, which it applies."""
    from sglang.srt.managers import mm_utils
    from sglang.srt.plugins.hook_registry import HookRegistry

    from vitcache.adapters.sglang import register

    register()
    HookRegistry.apply_hooks()
    hooked = {name: getattr(mm_utils, name) for name in HOOKED}
    missing = [name for name, function in hooked.items() if not hasattr(function, "__wrapped__")]
    if missing:
        raise RuntimeError(f"SGLang has not hooked {', '.join(missing)}: vitcache gets no number")
    return {name: inspect.unwrap(function) for name, function in hooked.items()}, hooked


def _equals(built: Tensor | None, expected: Tensor) -> bool:
    return built is not None and torch.equal(built.cpu(), expected)
