"""`sglang serve`: a server with the tokenizer, a scheduler and a detokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine_runner.message import data_url, message
from engine_runner.server_process import ServerProcess
from engine_runner.tiny_models import FAMILIES
from PIL import Image

from sglang_runner.cases import environment
from sglang_runner.child import NUM_TOKENS, OPTIONS

SCHEDULER = "sglang::scheduler"
MODEL = "tiny"  # as clients name it
FAMILY = FAMILIES["qwen3"]
IMAGE_TOKEN = FAMILY.token("<|image_pad|>")


class Server(ServerProcess):
    """A server with the options of the tests' engines, and these plug-ins.

    `folder` is that of the engines, and gets the log. `variables` are added to the environment.
    """

    def __init__(
        self,
        python: str,
        model: Path,
        folder: Path,
        name: str,
        plug_ins: Sequence[str],
        variables: dict[str, str] | None = None,
    ) -> None:
        self.model = model
        self.has_vitcache = "vitcache" in plug_ins
        command = [str(Path(python).with_name("sglang")), "serve", "--model-path", str(model)]
        super().__init__(
            [*command, "--served-model-name", MODEL, *flags({**OPTIONS, "enable_cache_report": True})],
            environment(folder) | {"SGLANG_PLUGINS": ",".join(plug_ins)} | (variables or {}),
            folder / "servers" / f"{name}.log",
        )

    def chat(self, images: Sequence[Image.Image], **options: Any) -> dict[str, Any]:
        """The answer of OpenAI's API to one message, as `read` returns it."""
        return read(self.post("/v1/chat/completions", chat_body(images, **options)))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a body in JSON. HTTPError if its status is an error."""
        return json.loads(self.get(path, json.dumps(body).encode()))

    def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a streamed answer, without the last one, which says that it has ended."""
        lines = self.get(path, json.dumps(body | {"stream": True}).encode()).decode().splitlines()
        events = [line.removeprefix("data: ") for line in lines if line]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    def ends(self) -> bool:
        """Whether the server ends by itself, with all its processes."""
        try:
            self.wait_for_end()
        except RuntimeError:
            return False
        return True

    def state(self) -> dict[str, Any]:
        """The internal state of the scheduler."""
        [state] = json.loads(self.get("/server_info"))["internal_states"]
        return dict(state)

    def counts(self) -> dict[str, Any]:
        """The counts of vitcache, with those of its one cache as `cache`."""
        counts = self.state()["vitcache"]
        [cache] = counts.pop("caches")
        return {**counts, "cache": cache}


def flags(options: dict[str, Any]) -> Iterator[str]:
    """Options of an `Engine` as flags of `sglang serve`, where an option that is False has no flag."""
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif value is not False:
            yield from (flag, str(value))


def chat_body(images: Sequence[Image.Image], **options: Any) -> dict[str, Any]:
    """The body of a request to OpenAI's API: one message with these images."""
    return {
        "model": MODEL,
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "logprobs": True,
        "return_token_ids": True,
        "messages": [message(images)],
        **options,
    }


def native_body(images: Sequence[Image.Image], **options: Any) -> dict[str, Any]:
    """The body of a request to `/generate`."""
    return {
        "text": f"{FAMILY.placeholder * len(images)}Describe it.",
        "image_data": [data_url(image) for image in images],
        "sampling_params": {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True},
        "return_logprob": True,
        **options,
    }


def read(answer: dict[str, Any]) -> dict[str, Any]:
    """The parts of an answer of OpenAI's API that do not depend on time."""
    [choice] = answer["choices"]
    return {
        "tokens": choice["response_token_ids"],
        "logprobs": [token["logprob"] for token in choice["logprobs"]["content"]],
        "prompt": choice["prompt_token_ids"],
        "cached_tokens": answer["usage"]["prompt_tokens_details"]["cached_tokens"],
    }
