"""The program of one engine: `python -m engine_runner.child CASE MODEL_FOLDER RESULT`.

It starts the engine of a case, takes the steps of the case, and writes a result as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine_runner import chat
from engine_runner.cases import CASES, Case
from engine_runner.planned_steps import PlannedSteps
from engine_runner.tiny_models import FAMILIES


class Engine:
    """An `LLM`, and the number of images that its vision tower has encoded since the engine was up."""

    def __init__(self, case: Case, model: Path) -> None:
        from vllm import LLM

        self.model = model
        self.family = FAMILIES[case.model]
        self.encodes = 0
        self._count_encodes(case)
        if not {"hung", "alone"} & set(case.steps):
            # Requests wait for a tier as long as it takes, also on a busy machine.
            importlib.import_module("vitcache.adapters.vllm.tier_settings").FETCH_TIMEOUT_S = 60.0
        self.steps = PlannedSteps()
        self.steps.watch()
        begin = time.monotonic()
        self.llm = LLM(str(model), **case.options())
        self.up_s = time.monotonic() - begin
        self.encodes = 0  # the engine encodes dummy images while it starts

    def _count_encodes(self, case: Case) -> None:
        module = importlib.import_module(f"vllm.model_executor.models.{self.family.module}")
        if case.model_runner == 2 and self.family.name.startswith("qwen3"):
            # In Triton's interpreter this kernel gives NaN. Both engines of a pair use the version in torch.
            qwen3_vl = importlib.import_module("vllm.model_executor.models.qwen3_vl")
            qwen3_vl.triton_pos_embed_interpolate = qwen3_vl.pos_embed_interpolate_native
        model_class = getattr(module, self.family.architecture)
        encode = model_class.embed_multimodal

        def embed_multimodal(model: Any, **arguments: Any) -> Any:
            rows = encode(model, **arguments)
            self.encodes += len(rows)
            return rows

        model_class.embed_multimodal = embed_multimodal

    def ask(self, numbers: list[int]) -> dict[str, Any]:
        """Answer one turn. Return its tokens, the number of its encodes, and its time."""
        return self.ask_together([numbers], 6)[0]

    def ask_together(self, turns: Sequence[list[int]], num_tokens: int) -> list[dict[str, Any]]:
        """Answer several turns at once. The encodes and the time of all are those of the first."""
        prompts = [chat.prompt(numbers, self.family.placeholder) for numbers in turns]
        answers = self._answer(prompts, num_tokens)
        return [{"images": numbers, **answer} for numbers, answer in zip(turns, answers, strict=True)]

    def ask_with(self, image: Any) -> dict[str, Any]:
        """Answer a prompt with one input in place of an image."""
        prompt = chat.prompt([0], self.family.placeholder)
        return self._answer([{**prompt, "multi_modal_data": {"image": image}}], 6)[0]

    def _answer(self, prompts: list[Any], num_tokens: int) -> list[dict[str, Any]]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        encodes, begin = self.encodes, time.monotonic()
        answers = self.llm.generate(prompts, sampling, use_tqdm=False)
        found = [
            {
                "tokens": list(answer.outputs[0].token_ids),
                "ends": answer.outputs[0].finish_reason,
                "encodes": 0,
                "ms": 0.0,
            }
            for answer in answers
        ]
        found[0] |= {
            "encodes": self.encodes - encodes,
            "ms": round(1e3 * (time.monotonic() - begin), 1),
        }
        return found

    def counters(self) -> dict[str, float]:
        """The values of vitcache's metrics, by name and labels."""
        found: dict[str, float] = {}
        for metric in self.llm.get_metrics():
            if "vitcache" in metric.name and hasattr(metric, "value"):
                labels = {key: value for key, value in metric.labels.items() if key not in LABELS_OF_ENGINES}
                found[" ".join([metric.name, *(f"{key}={value}" for key, value in labels.items())])] = (
                    metric.value
                )
        return found


LABELS_OF_ENGINES = ("model_name", "engine")


def take_chat(engine: Engine) -> Any:
    return [engine.ask(turn) for turn in chat.TURNS]


def take_together(engine: Engine) -> Any:
    """Turns one after the other, and then several at once."""
    return [*map(engine.ask, chat.BEFORE), *engine.ask_together(chat.TOGETHER, 6)]


def take_long(engine: Engine) -> Any:
    """Several turns at once, with answers that need more of the KV cache than the case has."""
    return engine.ask_together(chat.LONG, 40)


def take_reset(engine: Engine) -> Any:
    """One image that is cached, and the same image after `reset_encoder_cache`."""
    cached = engine.ask([1])
    engine.llm.llm_engine.reset_encoder_cache()
    return [cached, engine.ask([1]), engine.ask([1])]


def take_reload(engine: Engine) -> Any:
    """One image after the weights of another model are loaded."""
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": f"{engine.model}-other"})
    engine.llm.llm_engine.reset_encoder_cache()
    return [engine.ask([1]), engine.ask([1])]


def take_embeddings(engine: Engine) -> Any:
    """An image, two inputs that stop an engine if its front end accepts them, and the image again."""
    import torch

    grid = torch.tensor([[1, 12, 16]])
    bad = [{"image_grid_thw": grid}, {"image_embeds": torch.zeros(48, 7), "image_grid_thw": grid}]
    return [engine.ask([1]), *map(engine.ask_with, bad), engine.ask([1])]


def take_loss(engine: Engine) -> Any:
    """Two turns, and one whose rows a worker has lost; then the same again."""
    from vllm.distributed.ec_transfer import get_ec_transfer

    first = engine.ask([1])
    engine.ask([2, 3]), engine.ask([4, 5])  # evict it from the device tier
    get_ec_transfer()._store.cache.clear()  # as no known case does
    return [first, engine.ask([1]), engine.ask([1])]


def take_reload_alone(engine: Engine) -> Any:
    """A cached image after the weights are loaded again, without a reset of the scheduler; then it again."""
    first = engine.ask([1])
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(engine.model)})
    return [first, engine.ask([1]), engine.ask([1])]


RECURRING = ([1], [2, 3], [4])


def take_recurring(engine: Engine) -> Any:
    """Turns that are repeated until the tier has their images."""
    from vllm.distributed.ec_transfer import get_ec_transfer

    answers = [engine.ask(turn) for _ in range(3) for turn in RECURRING]
    return {"answers": answers, "is_flushed": get_ec_transfer()._store.cache.flush(60)}


def take_again(engine: Engine) -> Any:
    """The same turns, once."""
    return [engine.ask(turn) for turn in RECURRING]


def take_alone(engine: Engine) -> Any:
    """The same turns, twice, without the tier."""
    return [*take_again(engine), *take_again(engine)]


def take_hung(engine: Engine) -> Any:
    """The same turns while the disk hangs."""
    from threading import Event

    from vitcache.tiers.disk_tier import DiskTier

    released, fetch = Event(), DiskTier.fetch
    DiskTier.fetch = lambda *arguments: (released.wait(120), fetch(*arguments))[1]
    answers = take_again(engine)
    released.set()
    return answers


STEPS: dict[str, Callable[[Engine], Any]] = {
    name.removeprefix("take_"): step for name, step in list(globals().items()) if name.startswith("take_")
}


def main(name: str, model: str, result: str) -> None:
    case = CASES[name]
    engine = Engine(case, Path(model))
    taken = {step: STEPS[step](engine) for step in case.steps}
    answer = {
        "up_s": round(engine.up_s, 1),
        "counters": engine.counters(),
        "planned": engine.steps.counts(),
        "runner": "V2" if os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1" else "V1",
        **taken,
    }
    Path(result).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
