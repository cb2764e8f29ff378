"""One conversation through real engines: encodes, bytes moved, and milliseconds by stage.

This module is a part of the bench `engines`. Each engine is a process of its own. An engine of the tiny model
whose tokens differ from stock's gets no number. On the CPU, Triton's interpreter runs the kernels of Model
Runner V2, but none in the encoder and in `prepare_inputs_embeds`: only the times of these are recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vitcache.bench.engines.contenders import CONNECTOR, CPU_OFFLOAD, PLACED, STOCK, EngineOptions
from vitcache.bench.engines.conversation import turns
from vitcache.bench.engines.model_folder import WITH_WEIGHTS
from vitcache.bench.engines.start import run_engine
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import GPU
from vitcache.bench.harness.timing import Sample, Timer

FOLDER = Path("build/bench-engines").absolute()
LOAD_BYTES = "vllm:vitcache_load_bytes"
TIMES = {
    **dict.fromkeys(("encoder_ms", "inputs_ms", "step_ms", "first_token_ms"), "ms"),
    "inputs_host_us": "us",
}
WITHOUT_TRITON = {name: TIMES[name] for name in ("encoder_ms", "inputs_ms", "inputs_host_us")}
HITS_IMAGES = 4  # of the conversation whose written bytes are counted


@dataclass(frozen=True)
class ChatCase:
    """A conversation about `num_images` images, the first of which return after eviction.

    `cache_rows` is the size of vLLM's encoder cache, and of the device tier.
    """

    num_images: int
    size: str = WITH_WEIGHTS
    cache_rows: int = 512

    @property
    def name(self) -> str:
        """The images and the model."""
        return f"chat of {self.num_images} images, {self.size} model"

    def engine(self, contender: str) -> EngineOptions:
        """One engine of this case."""
        return EngineOptions(contender, self.size, cache_rows=self.cache_rows)


@dataclass(frozen=True)
class GpuChatCase(ChatCase):
    """A conversation with a model whose times mean something."""

    RUNS_ON: ClassVar[str] = GPU


def run_chat(case: ChatCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    device_type = timer.device.type
    steps = {"chat": {"num_images": case.num_images}, "hits": {"num_images": HITS_IMAGES}}
    names = [STOCK, CONNECTOR, PLACED, *([CPU_OFFLOAD] if device_type == GPU else [])]
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        yield name
        results[name] = run_engine(case.engine(name), steps, FOLDER, device_type)
        if case.size == WITH_WEIGHTS:  # the weights of other sizes give tokens that mean nothing
            check(name, results[name]["chat"], results[STOCK]["chat"])
    for name, result in results.items():
        add_counts(case, name, result, results[STOCK], recorder)
        stages = TIMES if device_type == GPU else WITHOUT_TRITON
        add_times(case, name, stages, result["chat"], results[STOCK]["chat"], recorder)


def check(name: str, answers: Sequence[dict[str, Any]], stock: Sequence[dict[str, Any]]) -> None:
    """Raise RuntimeError if an engine answers with other tokens than stock."""
    for answer, expected in zip(answers, stock, strict=True):
        if answer["tokens"] != expected["tokens"]:
            raise RuntimeError(
                f"{name} answers a turn about the images {answer['images']} with {answer['tokens']}, stock "
                f"with {expected['tokens']}: it gets no number"
            )


def total(answers: Sequence[dict[str, Any]], metric: str) -> float:
    """The sum of a metric over all turns."""
    return float(sum(answer[metric] for answer in answers))


def add_counts(
    case: ChatCase, name: str, result: dict[str, Any], stock: dict[str, Any], recorder: Recorder
) -> None:
    """Add encodes and bytes, which the speed of the machine does not change."""
    chat, hits = result["chat"], result["hits"]
    if total(hits, "encodes"):
        raise RuntimeError(f"{name} encodes images that are hits: their bytes get no number")
    distinct = len({number for turn in turns(case.num_images) for number in turn})
    is_judged = name in (CONNECTOR, PLACED)
    values = {
        "encodes": (total(chat, "encodes"), total(stock["chat"], "encodes"), distinct if is_judged else None),
        "feature_bytes": (total(chat, "feature_bytes"), total(stock["chat"], "feature_bytes"), None),
        "written_bytes": (total(hits, "written_bytes"), total(stock["hits"], "written_bytes"), None),
    }
    counters = result["chat counters"]
    if LOAD_BYTES in counters:
        values["load_bytes"] = (counters[LOAD_BYTES], 0.0, None)
    for metric, (value, reference, limit) in values.items():
        recorder.add(
            case.name,
            name,
            metric,
            "items" if metric == "encodes" else "bytes",
            Sample.of([value]),
            against=(STOCK, reference) if reference else None,
            target=limit,
            limit=limit,
        )


def add_times(
    case: ChatCase,
    name: str,
    stages: dict[str, str],
    chat: Sequence[dict[str, Any]],
    stock: Sequence[dict[str, Any]],
    recorder: Recorder,
) -> None:
    """Add the times of a turn by stage: median and percentiles over all turns."""
    for metric, unit in stages.items():
        sample, reference = (Sample.of([turn[metric] for turn in answers]) for answers in (chat, stock))
        against = (STOCK, reference.value) if reference.value else None
        recorder.add(case.name, name, metric, unit, sample, against=against)
