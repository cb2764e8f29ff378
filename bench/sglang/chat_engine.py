"""One `Engine` of SGLang with a meter in its scheduler."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from vitcache.bench.sglang.chat_engines import EngineOptions


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
