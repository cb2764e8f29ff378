"""The steps of the engines `bad`: requests with an image that cannot be encoded, alone and in a batch."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_runner import chat
from PIL import Image

from sglang_runner.faults import BAD_SIZE, FAULTS

BAD = -1  # the number of the image that fails
# The image that fails is in the only chunk of the prompt, in a middle one, and in the last one.
PROMPTS = {"only": [BAD], "middle": [0, 2, 4, 6, BAD, 8, 10, 12], "last": [0, 2, 4, 6, BAD]}
NEXT = "And then?"  # the text of the next turn of a session
SESSION_LENGTH = 1000
# Forms of a request, and the options of `Engine.async_generate`.
FORMS: dict[str, dict[str, Any]] = {
    "stream": {"stream": True},
    "logprobs": {"return_logprob": True, "logprob_start_len": 0},
    "n": {"sampling": {"n": 2}},
    "beam": {"sampling": {"beam_width": 2}, "return_logprob": False},
}


class Requests:
    """Sends requests to an engine, and returns an answer or an error for each."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._state = Path(tempfile.gettempdir()) / "state.json"

    def call(self, method: str, **arguments: Any) -> None:
        """Call a method of the scheduler."""
        self._engine.engine.collective_rpc(method, **arguments)

    def encodes(self) -> int:
        """The images that the encoder has encoded for vitcache."""
        return int(self._engine.counts()["vitcache"]["encodes"])

    def flush(self) -> None:
        """Flush the caches. The scheduler refuses it while it ends the step of the last answer."""
        while not self._engine.engine.flush_cache().success:
            pass

    def state(self) -> dict[str, Any]:
        self.call("write_state", path=str(self._state))
        return json.loads(self._state.read_text())

    def ask(self, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        """Answer requests that begin in one step, in this order."""
        return self._engine.engine.loop.run_until_complete(self._ask(requests))

    async def _ask(self, requests: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
        self.call("hold", is_held=True)
        tasks = []
        for number, request in enumerate(requests, start=1):
            tasks.append(asyncio.ensure_future(self._answer(**request)))
            while self.state()["waiting"] < number and not tasks[-1].done():
                await asyncio.sleep(0.002)  # the tokenizer of the engine runs in this loop
        self.call("hold", is_held=False)
        return await asyncio.gather(*tasks)

    async def _answer(
        self, numbers: list[int] | None = None, sampling: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Answer a request about images, or one whose `input_ids` and `image_data` are among the options."""
        options.setdefault("return_logprob", True)
        if numbers is not None:
            options["prompt"] = [self._engine.prompt(numbers)]
            options["image_data"] = [[image(number) for number in numbers]]
        try:
            answer = await self._engine.engine.async_generate(
                sampling_params={
                    "max_new_tokens": 3,
                    "temperature": 0,
                    "ignore_eos": True,
                    **(sampling or {}),
                },
                **options,
            )
            if options.get("stream"):
                *_, last = [part async for part in answer]
                return dict(last["meta_info"]["finish_reason"])
            return read(answer[0])
        except Exception as error:
            return {name: getattr(error, name, repr(error)) for name in ("status_code", "detail")}


def read(answer: dict[str, Any]) -> dict[str, Any]:
    about = answer["meta_info"]
    return {
        "tokens": answer["output_ids"],
        "logprobs": [entry[0] for entry in about["output_token_logprobs"]],
        "cached_tokens": about["cached_tokens"],
    }


def image(number: int) -> Image.Image:
    if number != BAD:
        return chat.image(number)
    pixels = np.random.default_rng(99).integers(0, 255, (*BAD_SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def together() -> tuple[dict[str, Any], ...]:
    """Two right requests, and between them one that has left the engine when the next step begins."""
    return {"numbers": [3]}, {"numbers": [BAD], "sampling": {"max_new_tokens": 1}}, {"numbers": [7]}


def take_bad(engine: Any) -> Any:
    """The same requests with a right encoder, with each fault, and again when the fault is mended."""
    requests = Requests(engine)
    found: dict[str, Any] = {"begin": requests.state(), "right": {}, "together": {}}
    for name, numbers in PROMPTS.items():
        found["right"][name] = requests.ask({"numbers": numbers})
        requests.flush()
    found["together"]["right"] = requests.ask(*together())
    for kind in FAULTS:
        found[kind] = {}
        for name, numbers in PROMPTS.items():
            requests.flush()
            requests.call("set_fault", kind=kind)
            failed = requests.ask({"numbers": numbers})
            state, encodes = requests.state(), requests.encodes()
            requests.call("set_fault", kind="none")
            mended = requests.ask({"numbers": numbers})
            encodes = requests.encodes() - encodes
            found[kind][name] = {"failed": failed, "state": state, "mended": mended, "encodes": encodes}
        requests.flush()
        requests.call("set_fault", kind=kind)
        found["together"][kind] = requests.ask(*together())
        requests.call("set_fault", kind="none")
    requests.flush()
    return {**found, "end": requests.state()}


def take_forms(engine: Any) -> Any:
    """Requests of each form whose image fails in a middle chunk and in the last one."""
    requests = Requests(engine)
    requests.call("set_fault", kind="short")
    found = {
        form: {name: requests.ask({"numbers": PROMPTS[name], **options}) for name in PROMPTS}
        for form, options in FORMS.items()
    }
    [right] = requests.ask({"numbers": [3]})
    requests.call("set_fault", kind="none")
    requests.flush()
    return {**found, "right": right, "end": requests.state()}


def take_sent(engine: Any) -> Any:
    """Requests whose pixels the client has processed: with their grid, and with one of twice the patches."""
    requests = Requests(engine)
    processor = engine.engine.tokenizer_manager.mm_processor._processor
    made = processor(text=[engine.prompt([BAD])], images=[image(BAD)], return_tensors="pt")
    request = {"input_ids": made["input_ids"].tolist()}
    data = {"format": "processor_output", "pixel_values": made["pixel_values"]}
    found = {}
    for name, factor in (("right", 1), ("wrong", 2)):
        grid = made["image_grid_thw"] * torch.tensor([1, factor, 1])
        found[name] = requests.ask({**request, "image_data": [[{**data, "image_grid_thw": grid}]]})
        requests.flush()
    return found


def take_session(engine: Any) -> Any:
    """Turns of a session that continue one whose image failed, and a prompt of the same text."""
    requests = Requests(engine)
    [right] = requests.ask({"prompt": [engine.prompt([BAD]) + NEXT], "image_data": [[image(BAD)]]})
    requests.flush()
    begin = requests.state()
    session = engine.engine.open_session(SESSION_LENGTH)
    requests.call("set_fault", kind="short")
    [failed] = requests.ask({"numbers": [BAD], "rid": ["bad"], "session_params": {"id": session}})
    next_turn = {"prompt": [NEXT], "session_params": {"id": session, "rid": "bad"}}
    [again] = requests.ask({**next_turn, "rid": ["again"]})
    requests.call("set_fault", kind="none")
    [mended] = requests.ask({**next_turn, "rid": ["mended"]})
    engine.engine.close_session(session)
    requests.flush()
    found = {"right": right, "failed": failed, "again": again, "mended": mended}
    return {**found, "begin": begin, "end": requests.state()}


def take_death(engine: Any) -> Any:
    """One request whose image fails, and one that is right."""
    requests = Requests(engine)
    requests.call("set_fault", kind="raises")
    return [requests.ask({"numbers": [BAD]}), requests.ask({"numbers": [3]})]


STEPS = {
    "bad": take_bad,
    "forms": take_forms,
    "sent": take_sent,
    "session": take_session,
    "death": take_death,
}
