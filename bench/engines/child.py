"""The program of one engine: `python -m vitcache.bench.engines.child OPTIONS MODEL_FOLDER RESULT`.

It starts the engine, takes the steps, and writes a result as JSON. OPTIONS is JSON: the fields of
`EngineOptions`, and the names of the steps with their arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitcache.bench.engines import conversation
from vitcache.bench.engines.contenders import EngineOptions
from vitcache.bench.engines.meter import Meter

NUM_TOKENS = 6  # of an answer
LABELS_OF_ENGINES = ("model_name", "engine")


class Engine:
    """An `LLM` with a meter. Its own encodes of the start are not counted."""

    def __init__(self, options: EngineOptions, model: Path) -> None:
        from vllm import LLM, SamplingParams
        from vllm.platforms import current_platform

        self.options = options
        self.device = torch.device(current_platform.device_type)
        if self.device.type == "cpu" and options.model_runner == 2:
            from vllm.model_executor.models import qwen3_vl

            # In Triton's interpreter this kernel gives NaN. All contenders use the version in torch.
            qwen3_vl.triton_pos_embed_interpolate = qwen3_vl.pos_embed_interpolate_native
        self.llm = LLM(str(model), **options.arguments())
        [runner] = self.llm.collective_rpc(lambda worker: worker.model_runner)
        self.runner = runner
        self.meter = Meter(runner, self.device)
        self._sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)

    def ask(self, numbers: list[int]) -> dict[str, Any]:
        """Answer one turn. Return its tokens and the sums of the meter."""
        prompt = conversation.prompt(self.options.size, numbers)
        [answer] = self.llm.generate(prompt, self._sampling, use_tqdm=False)
        return {
            "images": numbers,
            "rows": sum(map(self.options.image_rows, numbers)),
            "tokens": list(answer.outputs[0].token_ids),
            "first_token_ms": 1e3 * answer.metrics.first_token_latency,
            **self.meter.take(),
        }

    def reset(self) -> None:
        """Empty the encoder cache, as after an update of the weights."""
        self.llm.llm_engine.reset_encoder_cache()

    def counters(self) -> dict[str, float]:
        """The values of the metrics of encoder cache connectors, by name and labels."""
        found: dict[str, float] = {}
        for metric in self.llm.get_metrics():
            if "vitcache" in metric.name and hasattr(metric, "value"):
                labels = {key: value for key, value in metric.labels.items() if key not in LABELS_OF_ENGINES}
                key = " ".join([metric.name, *(f"{name}={value}" for name, value in labels.items())])
                found[key] = metric.value
        return found


def take_chat(engine: Engine, num_images: int) -> Any:
    """Answer all turns of the conversation."""
    return [engine.ask(turn) for turn in conversation.turns(num_images)]


def take_hits(engine: Engine, num_images: int) -> Any:
    """Answer each turn twice, and count the bytes that the second one writes: its images are all hits."""
    answers = []
    for turn in conversation.turns(num_images):
        engine.ask(turn)
        engine.meter.counts_bytes = True
        answers.append(engine.ask(turn))
        engine.meter.counts_bytes = False
    return answers


def take_reset(engine: Engine) -> Any:
    """Ask about a cached image before and after a reset."""
    engine.ask([0])
    cached = engine.ask([0])
    engine.reset()
    return [cached, engine.ask([0])]


STEPS: dict[str, Callable[..., Any]] = {
    name.removeprefix("take_"): step for name, step in list(globals().items()) if name.startswith("take_")
}


def main(options: str, model: str, result: str) -> None:
    """Run one engine."""
    given = json.loads(options)
    engine = Engine(EngineOptions(**given["engine"]), Path(model))
    taken = {name: STEPS[name](engine, **arguments) for name, arguments in given["steps"].items()}
    Path(result).write_text(json.dumps({"counters": engine.counters(), **taken}))


if __name__ == "__main__":
    main(*sys.argv[1:])
