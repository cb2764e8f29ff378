"""The host's time of `prepare_inputs_embeds`: vLLM's own model state beside vitcache's.

This module is a part of the bench `engines`. All images of a step are hits, and their rows are tiny: the time
is the host's work. Each contender must give the rows of a loop over images before any contender is timed.
vitcache reads the items of a request in its first step and keeps them for further chunks: both are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from vitcache.bench.engines.variables import use_vllm_on
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU
from vitcache.bench.harness.timing import Timer

if TYPE_CHECKING:
    from vitcache.bench.engines.step_scene import StepScene

STOCK, VITCACHE = "stock", "vitcache"
FIRST = "vitcache, first step of a request"
WHOLE = "vitcache, with the connector's calls of the step"
JUDGED = (1, 8, 32)  # hits of a step that must cost less than stock's
TARGET = 1.0
CALLS = 20  # calls of one contender in a round


@dataclass(frozen=True)
class InputsCase:
    """One step with `hits` images that were encoded before; 0: a decode step of one token.

    `levels` is the number of deepstack levels.
    """

    RUNS_ON: ClassVar[str] = CPU

    hits: int
    levels: int = 0

    @property
    def name(self) -> str:
        """The number of hits, and of deepstack levels."""
        kind = f"{self.hits} hits" if self.hits else "decode"
        return f"{kind}, {self.levels} deepstack levels" if self.levels else kind


class StockStep:
    """vLLM's `DefaultModelState`, with its `EncoderRunner` and its `EncoderCache`."""

    def __init__(self, scene: StepScene) -> None:
        from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        self.model, cache = scene.model(), EncoderCache()
        scene.fill(cache)
        self._state = DefaultModelState(scene.config, self.model, cache, torch.device(CPU))
        self._batch = scene.batch

    def __call__(self) -> Tensor:
        """Call `prepare_inputs_embeds`."""
        embeds: Tensor = self._state.prepare_inputs_embeds({}, self._batch, None)
        return embeds


def run_inputs(case: InputsCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case on one thread of torch; yields a label before each part."""
    use_vllm_on(CPU)
    from vitcache.bench.engines.step_scene import StepScene
    from vitcache.bench.engines.vitcache_step import open_vitcache_step

    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scene = StepScene(case.hits, case.levels)
        # As the model runner does, all calls are in inference mode.
        with torch.inference_mode(), open_vitcache_step(scene) as placed:
            stock = StockStep(scene)
            yield "check, and in turns"
            steps: dict[str, Callable[[], Tensor]] = {STOCK: stock, VITCACHE: placed, WHOLE: placed.whole}
            if case.hits:
                steps[FIRST] = placed
            for name, step in steps.items():
                check(name, step, stock.model if name == STOCK else placed.model, scene)
            before = dict.fromkeys(steps, do_nothing) | {FIRST: placed.forget}
            samples = timer.rounds_us(dict(steps), calls=CALLS, before=before)
    finally:
        torch.set_num_threads(threads_before)
    reference_us = samples[STOCK].value
    for name, sample in samples.items():
        target = TARGET if name in (VITCACHE, FIRST) and case.hits in JUDGED else None
        recorder.add(
            case.name,
            name,
            "host_us",
            "us",
            sample,
            against=(STOCK, reference_us),
            target=target,
            limit=target and target * reference_us,
        )


def do_nothing() -> None:
    """Prepare nothing: stock keeps nothing of a request between its steps."""


def check(name: str, step: Callable[[], Tensor], model: Any, scene: StepScene) -> None:
    """Raise RuntimeError if a contender's buffers differ from those of a loop over images.

    The deepstack buffers are zero before the step, as the model leaves them. A step without images may leave
    them alone.
    """
    buffers = list(getattr(model, "deepstack_input_embeds", ()))
    embeds, deepstack = scene.truth()
    for _ in range(2):  # the second call must not depend on the buffers of the first one
        for buffer in buffers:
            buffer.zero_()
        built = step()
        is_right = torch.equal(built, embeds) and all(map(torch.equal, buffers, deepstack))
        if not is_right:
            raise RuntimeError(f"{name} built other rows than a loop over images: it gets no number")
        built.fill_(torch.nan)
