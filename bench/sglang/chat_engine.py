"""One `Engine` of SGLang with a meter in its scheduler: `python -m vitcache.bench.sglang.chat_engine`.

The arguments of the program are OPTIONS, as JSON, the folder of the model, and the file of the result.
OPTIONS has the fields of `EngineOptions`, the type of the device, and the steps with their arguments, in
order. The result, as JSON, has the results of the steps so far; it is written again after each part of a
step.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vitcache.bench.sglang.chat_engines import EngineOptions
from vitcache.terminal.result_file import replace_file


class ChatEngine:
    """An `Engine` that answers one request at a time, with one token."""

    def __init__(self, options: EngineOptions, device_type: str, model: str, folder: Path) -> None:
        from sglang.srt.entrypoints.engine import Engine

        self._engine = Engine(model_path=model, **options.arguments(device_type))
        self._measured = folder / "measured.json"
        self._engine.collective_rpc("bench_start")

    def ask(self, ids: list[int], images: list[Any]) -> dict[str, Any]:
        """Answer one request. Return its token, the time to it, and the measurements of the meter."""
        sampling = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}
        begin = time.perf_counter()
        answer = self._engine.generate(
            input_ids=ids, image_data=images, sampling_params=sampling, return_logprob=True
        )
        ttft_ms = 1e3 * (time.perf_counter() - begin)
        self._engine.collective_rpc("bench_take", path=str(self._measured))
        [(logprob, *_)] = answer["meta_info"]["output_token_logprobs"]
        return {
            "tokens": answer["output_ids"],
            "logprob": logprob,
            "prompt_tokens": answer["meta_info"]["prompt_tokens"],
            "ttft_ms": ttft_ms,
            **json.loads(self._measured.read_text()),
        }

    def limit_memory(self, added_bytes: int) -> None:
        """Limit the data that the scheduler adds from now on."""
        self._engine.collective_rpc("bench_limit", num_bytes=added_bytes)

    def shut_down(self) -> None:
        """End all processes of the engine."""
        self._engine.shutdown()


def main(options: str, model: str, result: str) -> None:
    """Run one engine."""
    from vitcache.bench.sglang.chat_steps import STEPS

    given = json.loads(options)
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # of the sockets: the path of a socket must be short
        engine = ChatEngine(EngineOptions(**given["engine"]), given["device_type"], model, Path(folder))
        taken: dict[str, Any] = {}
        try:
            for key, name, arguments in given["steps"]:
                for taken[key] in STEPS[name](engine, **arguments):
                    replace_file(Path(result), json.dumps(taken))
        finally:
            engine.shut_down()


if __name__ == "__main__":
    main(*sys.argv[1:])
