"""The steps that an engine of the bench takes: `python -m vitcache.bench.sglang.chat_steps`.

The arguments of the program are OPTIONS, as JSON, the folder of the model, and the file of the result.
OPTIONS has the fields of `EngineOptions`, the type of the device, and the steps with their arguments, in
order. Each step yields its result so far, and the program then writes the results of all steps, as JSON. So
if the process ends in the last step, the file has the result of its last yield.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vitcache.bench.sglang.chat_engine import ChatEngine
from vitcache.bench.sglang.chat_engines import EngineOptions
from vitcache.demo.model import AFTER_BYTES
from vitcache.terminal.result_file import replace_file

TEXT = list(b"A picture of a chat: ")  # before each image
QUESTION = list(b"Describe the pictures.")
START, END, IMAGE = (AFTER_BYTES[f"{name}_token_id"] for name in ("vision_start", "vision_end", "image"))


def noise(width: int, height: int, number: int) -> Any:
    """One image of noise; the same number gives the same pixels in every process."""
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompt(num_images: int) -> list[int]:
    """The prompt of a turn of a chat; SGLang repeats the token of an image for each of its rows."""
    return [*num_images * [*TEXT, START, IMAGE, END], *QUESTION]


def take_turns(
    engine: ChatEngine, size: tuple[int, int], turns: int, passes: int, warm_up: int
) -> Iterator[Any]:
    """Run a chat `passes` times, each time with other images: one new image of `size` in each turn.

    Before them, a chat of `warm_up` turns is not measured. Yields the turns of the passes so far.
    """
    measured = []
    for number in range(passes + 1):
        images = [noise(*size, 100 * number + turn) for turn in range(turns)]
        for turn in range(1, (turns if number else warm_up) + 1):
            answer = engine.ask(prompt(turn), images[:turn])
            if number:
                measured.append({"turn": turn, **answer})
        yield measured


def take_limit(
    engine: ChatEngine, size: tuple[int, int], most: int, added_bytes: int | None
) -> Iterator[Any]:
    """Ask about 1, 2, 4, ... up to `most` new images in one request, until memory ends.

    `added_bytes` limits the data that the scheduler adds from now on; None: the memory of the device ends it.
    Before it, one request starts the threads of the scheduler, whose stacks count as data. Yields the answers
    so far.
    """
    engine.ask(prompt(2), [noise(*size, number) for number in (9_998, 9_999)])
    if added_bytes is not None:
        engine.limit_memory(added_bytes)
    answered: list[dict[str, Any]] = []
    count = 1
    while count <= most:
        images = [noise(*size, 10_000 * count + number) for number in range(count)]
        try:
            answer = engine.ask(prompt(count), images)
        except Exception:  # vitcache ends the request; stock ends the engine, and with it this process
            break
        if answer["errors"]:
            break
        answered.append({"count": count, **answer})
        yield answered
        count *= 2


def take_answers(
    engine: ChatEngine, chats: int, turns: int, cards: int, *, are_swapped: bool = False
) -> Iterator[Any]:
    """Ask the questions of the bench `accuracy`: about `cards` held-out cards, in `chats` chats.

    With `are_swapped`, the two cards with the most questions have each other's image.
    """
    from PIL import Image

    from vitcache.bench.chats.digits import deal, load_cards, most_asked
    from vitcache.bench.chats.reader import SIZE
    from vitcache.demo.model import build_processor

    _, held_out = load_cards(build_processor(SIZE), 0)
    rng = random.Random(1)
    dealt = [deal(held_out[:cards], turns, rng) for _ in range(chats)]
    shown = {id(card): card for chat in dealt for card in chat.cards}
    if are_swapped:
        first, second = most_asked(dealt)
        shown |= {id(first): second, id(second): first}
    config = SimpleNamespace(image_token_id=IMAGE)
    found: dict[str, Any] = {"answers": [], "expected": [], "images": 0, "encodes": 0}
    for chat in dealt:
        ids, answered_at = chat.ids(config)
        for turn, end in enumerate(answered_at, 1):
            pixels = [shown[id(card)].picture.photo.pixels for card in chat.cards[:turn]]
            answer = engine.ask(one_each(ids[:end]), [Image.fromarray(image) for image in pixels])
            found["answers"] += answer["tokens"]
            found["expected"].append(ids[end])
            found["images"] += len(pixels)
            found["encodes"] += sum(chunk["images"] for chunk in answer["chunks"])
    yield {**found, "demotions": answer["demotions"]}


def one_each(ids: list[int]) -> list[int]:
    """Return token ids with one token for each image."""
    return [token for place, token in enumerate(ids) if token != IMAGE or ids[place - 1] != IMAGE]


STEPS: dict[str, Callable[..., Iterator[Any]]] = {
    "turns": take_turns,
    "limit": take_limit,
    "answers": take_answers,
}


def main(options: str, model: str, result: str) -> None:
    """Run the steps of one engine."""
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
