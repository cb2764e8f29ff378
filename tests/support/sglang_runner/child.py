"""The program of one engine: `python -m sglang_runner.child CASE MODEL_FOLDER RESULT`.

It starts the engine of a case, takes the steps of the case, and writes a result as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine_runner import chat
from engine_runner.cases import STORE
from engine_runner.tiny_models import FAMILIES

from sglang_runner import bad_images
from sglang_runner.cases import CASES, CHUNK, Case

# The numbers of the images of each turn. The turns of a chat repeat their images.
TURNS = ([0], [0, 1], [0, 1, 2], [0, 1, 2])
SWAPPED = [0, 5, 2]  # the images 1 and 5 have one size
LATER = ([6], [6, 7], [6, 7, 8])
RELOADED = [9, 10, 11]
NEW = [12]
NUM_TOKENS = 4
# Triton, CUDA graphs and the overlap of steps need a GPU.
OPTIONS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "mm_attention_backend": "sdpa",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.1,
    "max_total_tokens": 4096,
    "max_running_requests": 4,
    "chunked_prefill_size": CHUNK,
    "skip_server_warmup": True,
    "log_level": "info",
}


class Engine:
    """An `Engine` of SGLang, and the counts of its scheduler since it was up."""

    def __init__(self, case: Case, model: Path, folder: Path) -> None:
        self.model = model
        self.placeholder = FAMILIES[case.model].placeholder
        self._case, self._folder = case, folder
        self._counts = folder / "counts.json"
        self.start()

    def start(self, **options: Any) -> None:
        """Start the engine. `options` are those of the plug-in, for a case with tiers."""
        from sglang.srt.entrypoints.engine import Engine as SglangEngine

        if self._case.tiers:
            tiers = {**self._case.tiers, **options}
            if "disk_bytes" in tiers:
                tiers["disk"] = str(self._folder / "disk")
            if tiers.get("mooncake") == STORE:
                tiers["mooncake"] = os.environ[STORE]
            os.environ["VITCACHE_SGLANG_OPTIONS"] = json.dumps(tiers)
        begin = time.monotonic()
        self.engine = SglangEngine(model_path=str(self.model), **{**OPTIONS, **self._case.options})
        self.up_s = time.monotonic() - begin
        self.engine.collective_rpc("watch")

    def ask(self, numbers: list[int], first_logprob: int = 0) -> dict[str, Any]:
        """Answer one turn, with the log probabilities of its tokens from `first_logprob` on."""
        return self.ask_together([numbers], first_logprob)[0]

    def ask_together(self, turns: list[list[int]], first_logprob: int = 0) -> list[dict[str, Any]]:
        """Answer several turns at once. The time and the counts of all are those of the first."""
        before, begin = self.counts(), time.monotonic()
        answers = self.engine.generate(
            [self.prompt(numbers) for numbers in turns],
            image_data=[[chat.image(number) for number in numbers] for numbers in turns],
            sampling_params={"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True},
            return_logprob=True,
            logprob_start_len=first_logprob,
        )
        seconds, after = time.monotonic() - begin, self.counts()
        found = [{"images": images, **read(answer)} for images, answer in zip(turns, answers, strict=True)]
        found[0] |= {"s": round(seconds, 3)}
        found[0] |= {name: after[name] - before[name] for name in ("encodes", "lookups", "placed")}
        return found

    def prompt(self, numbers: list[int]) -> str:
        parts = "".join(f"{self.placeholder}picture {number} has a long text. " for number in numbers)
        return f"<|im_start|>user\n{parts}Describe them.<|im_end|>\n<|im_start|>assistant\n"

    def server_info(self) -> Any:
        """The counts of vitcache that SGLang's own call returns, or None."""
        return self.engine.get_server_info()["internal_states"][0].get("vitcache")

    def counts(self) -> dict[str, Any]:
        """The counts of the probe, and those of vitcache, in the process of the scheduler."""
        self.engine.collective_rpc("write_counts", path=str(self._counts))
        return json.loads(self._counts.read_text())


def read(answer: dict[str, Any]) -> dict[str, Any]:
    """The parts of an answer that do not depend on time."""
    about = answer["meta_info"]
    return {
        "tokens": answer["output_ids"],
        "logprobs": [entry[0] for entry in about["output_token_logprobs"]],
        "prompt_logprobs": [entry[0] for entry in about["input_token_logprobs"]],
        "prompt_tokens": about["prompt_tokens"],
        "cached_tokens": about["cached_tokens"],
    }


def take_chat(engine: Engine) -> Any:
    return [engine.ask(turn) for turn in TURNS]


def take_swapped(engine: Engine) -> Any:
    """The last turn with another image of the same size."""
    return [engine.ask(SWAPPED)]


def take_together(engine: Engine) -> Any:
    """Several turns at once, one of them without an image."""
    return engine.ask_together([[2, 3], [], [3, 4]])


def take_prefix(engine: Engine) -> Any:
    """Turns that begin with the KV cache of the turn before: without log probabilities of the prompt."""
    return [engine.ask(turn, -1) for turn in LATER]


def take_flush(engine: Engine) -> Any:
    """The last turn after a flush of the caches."""
    while not engine.engine.flush_cache().success:
        pass  # refused while the scheduler ends the step of the last answer
    return [engine.ask(TURNS[-1])]


def take_seen(engine: Engine) -> Any:
    """The images of `reload`, before it."""
    return [engine.ask(RELOADED)]


def take_reload(engine: Engine) -> Any:
    """A turn after other weights are loaded."""
    done = engine.engine.update_weights_from_disk(f"{engine.model}-other")
    return [{"done": done, **engine.ask(RELOADED)}]


def take_cleared(engine: Engine) -> Any:
    """The last turn, after the cache of one rank lost its entries."""
    engine.engine.collective_rpc("clear_rank", rank=1)
    return [engine.ask(TURNS[-1])]


def take_broken(engine: Engine) -> Any:
    """The turn of `new` while one rank cannot read features, and its error."""
    engine.engine.collective_rpc("break_rank", rank=1)
    try:
        engine.ask(NEW)
    except Exception as error:
        return {"type": type(error).__name__, "text": str(error)}
    finally:
        engine.engine.collective_rpc("break_rank", rank=None)


def take_kept(engine: Engine) -> Any:
    """The turns of `chat`, until the tier has their images."""
    turns = [engine.ask(turn) for turn in (*TURNS, TURNS[-1])]
    while True:
        [tier] = engine.server_info()["caches"][0]["tiers"]
        if tier["stored"] + tier["skipped_stores"] >= len(
            TURNS[-1]
        ):  # another rank stores those that it skips
            return turns


def take_found(engine: Engine) -> Any:
    """The last turn of `chat`, and a new image."""
    return [engine.ask(TURNS[-1]), engine.ask(NEW)]


def take_restarted(engine: Engine) -> Any:
    """The last turn after the end of the engine, and a new image, with an engine that has started again."""
    engine.engine.shutdown()
    engine.start()
    return take_found(engine)


def take_renamed(engine: Engine) -> Any:
    """The last turn with an engine that has started again, and has another name for its weights."""
    engine.engine.shutdown()
    engine.start(weights_name="other")
    return [engine.ask(TURNS[-1])]


def take_new(engine: Engine) -> Any:
    return [engine.ask(NEW)]


STEPS: dict[str, Callable[[Engine], Any]] = {
    name.removeprefix("take_"): step for name, step in list(globals().items()) if name.startswith("take_")
} | bad_images.STEPS


def main(name: str, model: str, result: str) -> None:
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # of the sockets
        engine = Engine(case, Path(model), Path(folder))
        infos = [engine.server_info()]
        taken = {step: STEPS[step](engine) for step in case.steps}
        infos.append(engine.server_info())
        answer = {"up_s": round(engine.up_s, 1), "counts": engine.counts(), "infos": infos, **taken}
        Path(result).write_text(json.dumps(answer))
        engine.engine.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
