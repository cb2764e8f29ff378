"""One `LLM` with a meter, in the process of the caller."""

from __future__ import annotations

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

    def add(self, name: str, numbers: list[int]) -> None:
        """Add a request about images; `step` answers it."""
        prompt = conversation.prompt(self.options.size, numbers)
        self.llm.llm_engine.add_request(name, prompt, self._sampling)

    def step(self) -> bool:
        """Run one step. Return whether requests are left."""
        self.llm.llm_engine.step()
        return bool(self.llm.llm_engine.has_unfinished_requests())

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
