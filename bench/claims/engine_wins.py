"""The ten differences between vitcache and vLLM's ECCPUConnector, each measured in a real engine.

This module is a part of the bench `engines`. ECCPUConnector runs on a GPU only, and the wins 1 to 4 are about
its copies: without a GPU they are skipped, each with one line, and the skipped wins are counted. The other
wins are measured for vitcache on the CPU, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcache.bench.claims.engine_chats import FOLDER
from vitcache.bench.engines.contenders import CPU_OFFLOAD, PLACED, STOCK, EngineOptions
from vitcache.bench.engines.start import EngineFailed, run_engine
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU, GPU
from vitcache.bench.harness.timing import Sample, Timer

SHARED_MEMORY = Path("/dev/shm")
METRIC = "win"
# The measurement of each, by its number.
WINS = {
    1: "milliseconds that a load adds to a mixed step",
    2: "milliseconds of prepare_inputs_embeds",
    3: "bytes that stay allocated after a partial eviction",
    4: "host's microseconds to queue a load and inputs_embeds, after evictions",
    5: "encodes after reset_encoder_cache",
    6: "encodes of two large images that return",
    7: "steps from the encode to a hit",
    8: "turns answered of 2",
    9: "metrics that stock does not have",
    10: "files left in /dev/shm by SIGKILL",
}
UNITS = dict(
    zip(
        WINS,
        ("ms", "ms", "bytes", "us", "items", "items", "steps", "turns", "metrics", "files"),
        strict=True,
    )
)
NEEDS_GPU = (1, 2, 3, 4)
BYTES_WRITTEN = ", and the bytes that it writes"
# The engines whose times are measured. Their encoder cache holds three images of the conversation.
GPU_SIZE: dict[str, Any] = {"size": "8b", "cache_rows": 2816}
Add = Callable[..., None]


@dataclass(frozen=True)
class WinsCase:
    """Some of `WINS`, which share engines."""

    wins: tuple[int, ...]

    @property
    def name(self) -> str:
        """The numbers of the wins."""
        return f"win {self.wins[0]}" if len(self.wins) == 1 else f"wins {', '.join(map(str, self.wins))}"


def run_wins(case: WinsCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each engine."""
    device_type = timer.device.type
    skipped = [win for win in case.wins if win in NEEDS_GPU and device_type != GPU]
    for win in skipped:
        print(f"engines: win {win} is skipped, it needs a GPU: {WINS[win]}")
    recorder.add(case.name, PLACED, "skipped_wins", "wins", Sample.of([len(skipped)]))
    if len(skipped) == len(case.wins):
        return

    references: dict[str, float] = {}  # of ECCPUConnector, by case

    def add(win: int, contender: str, values: list[float], suffix: str = "", **options: Any) -> None:
        name = f"win {win}: {WINS[win]}{suffix}"
        sample = Sample.of(values)
        if contender == CPU_OFFLOAD:
            references[name] = sample.value
        elif contender == PLACED and name in references:
            if references[name]:
                options["against"] = (CPU_OFFLOAD, references[name])
            if win in NEEDS_GPU:
                options |= {"target": 1, "limit": references[name]}
        unit = "bytes" if suffix == BYTES_WRITTEN else UNITS[win]
        recorder.add(name, contender, METRIC, unit, sample, **options)

    contenders = [CPU_OFFLOAD, PLACED] if device_type == GPU else [PLACED]
    if device_type != GPU:
        print(f"engines: {CPU_OFFLOAD} is left out of the {case.name}, it needs a GPU")
    for measure, wins in MEASURES.items():
        if set(wins) & set(case.wins):
            yield from measure(add, contenders, device_type)


def measure_copies(add: Add, contenders: list[str], device_type: str) -> Iterator[str]:
    """Measure the wins 1 to 4, on a GPU."""
    steps: dict[str, dict[str, Any]] = {
        "mixed": {"repeats": 10},
        "hits": {"num_images": 12},
        "memory": {},
        "submit": {"num_images": 24},
    }
    for contender in contenders:
        yield f"{contender}, copies"
        found = run_engine(EngineOptions(contender, **GPU_SIZE), steps, FOLDER, device_type)
        evicted, resident = found["mixed"]
        added = [late - early for late, early in zip(evicted, resident, strict=True)]
        add(1, contender, added)
        add(2, contender, [turn["inputs_ms"] for turn in found["hits"]])
        written = [turn["written_bytes"] for turn in found["hits"]]
        add(2, contender, written, BYTES_WRITTEN)
        before, after = found["memory"]
        add(3, contender, [after - before])
        add(4, contender, found["submit"])


def measure_hits(add: Add, contenders: list[str], device_type: str) -> Iterator[str]:
    """Measure the wins 5, 7, 9 and 10. The engine kills itself at the end."""
    steps: dict[str, dict[str, Any]] = {"reset": {}, "distance": {"image": 1}}
    yield f"{STOCK}, its metrics"
    stock = run_engine(EngineOptions(STOCK), {}, FOLDER, device_type)
    for contender in contenders:
        yield f"{contender}, hits"
        files = shared_memory()
        found = run_engine(EngineOptions(contender), steps, FOLDER, device_type, is_killed=True)
        left = shared_memory() - files
        cached, after_reset = found["reset"]
        if cached["encodes"] or found["distance"]["encodes"] != 1:
            raise RuntimeError(f"{contender} encodes a cached image: its hits get no number")
        judged = {"target": 1, "limit": 1} if contender == PLACED else {}
        none = {"target": 0, "limit": 0} if contender == PLACED else {}
        add(5, contender, [after_reset["encodes"]], at_least=True, **judged)
        add(7, contender, [found["distance"]["steps"]], **judged)
        metrics = set(found["metrics"]) - set(stock["metrics"])
        add(9, contender, [len(metrics)], at_least=True, **judged)
        add(10, contender, [len(left)], **none)


def measure_sizes(add: Add, contenders: list[str], device_type: str) -> Iterator[str]:
    """Measure the win 6: vLLM's encoder cache holds one image, the device tier has the size for two."""
    for contender in (STOCK, *contenders):
        yield f"{contender}, two large images"
        options = EngineOptions(
            contender, cache_rows=64, device_rows=160, host_rows=0 if contender == PLACED else 64
        )
        found = run_engine(options, {"return": {"images": [0, 2]}}, FOLDER, device_type)
        none = {"target": 0, "limit": 0} if contender == PLACED else {}
        add(6, contender, [sum(turn["encodes"] for turn in found["return"])], **none)


def measure_runners(add: Add, contenders: list[str], device_type: str) -> Iterator[str]:
    """Measure the win 8: an engine that does not start answers no turn."""
    runners = [
        (CPU_OFFLOAD, 1),
        (PLACED, 1),
        *([(CPU_OFFLOAD, 2), (PLACED, 2)] if device_type == CPU else []),
    ]
    for contender, model_runner in runners:
        yield f"{contender}, V{model_runner}"
        options = EngineOptions(contender, model_runner=model_runner)
        try:
            found = run_engine(options, {"return": {"images": [0, 1]}}, FOLDER, device_type)
            answered = len(found["return"])
        except EngineFailed as error:
            answered = 0
            print(f"engines: {contender} does not start with V{model_runner}: {error.reason}")
        judged = {"target": 2, "limit": 2} if contender == PLACED else {}
        suffix = f", Model Runner V{model_runner}, {device_type}"
        add(8, contender, [answered], suffix, at_least=True, **judged)


MEASURES: dict[Callable[[Add, list[str], str], Iterator[str]], tuple[int, ...]] = {
    measure_copies: (1, 2, 3, 4),
    measure_hits: (5, 7, 9, 10),
    measure_sizes: (6,),
    measure_runners: (8,),
}


def shared_memory() -> set[str]:
    """The names of the files in /dev/shm."""
    return {path.name for path in SHARED_MEMORY.iterdir()}
