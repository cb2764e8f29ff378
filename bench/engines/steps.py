"""The steps that the process of an engine takes, by name. Each returns values that JSON can carry."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from vitcache.bench.engines import conversation
from vitcache.bench.engines.engine import Engine

LAST_IMAGES = 3  # images at the end of the conversation, which its encoder cache still holds
MOST_STEPS = 100  # until two requests are answered


def take_chat(engine: Engine, num_images: int) -> Any:
    """Answer all turns of the conversation."""
    return [engine.ask(turn) for turn in conversation.turns(num_images)]


def take_hits(engine: Engine, num_images: int) -> Any:
    """Answer each turn three times. The second and third answer are all hits.

    The times are those of the second answer, and the written bytes those of the third one, whose times
    contain the counting.
    """
    answers = []
    for turn in conversation.turns(num_images):
        engine.ask(turn)
        timed = engine.ask(turn)
        engine.meter.counts_bytes = True
        answers.append({**timed, "written_bytes": engine.ask(turn)["written_bytes"]})
        engine.meter.counts_bytes = False
    return answers


def take_reset(engine: Engine) -> Any:
    """Ask about a cached image before and after a reset."""
    engine.ask([0])
    cached = engine.ask([0])
    engine.reset()
    return [cached, engine.ask([0])]


def take_return(engine: Engine, images: list[int]) -> Any:
    """Ask about each image alone, and about each again."""
    for number in images:
        engine.ask([number])
    return [engine.ask([number]) for number in images]


def take_distance(engine: Engine, image: int) -> Any:
    """Send two requests about one image, the second one after the step that encodes the image.

    Returns the steps from that step to the first step of the second request, and the number of encodes.
    """
    engine.reset()
    encodes, known = engine.meter.encodes, len(engine.meter.new_requests)
    engine.add("first", [image])
    while engine.meter.encodes == encodes:
        engine.step()
    engine.add("second", [image])
    for _ in range(MOST_STEPS):
        if not engine.step():
            break
    first, second = engine.meter.new_requests[known:]
    return {"steps": second - first, "encodes": int(engine.meter.take()["encodes"])}


def take_mixed(engine: Engine, repeats: int) -> Any:
    """Ask about a new image and an old one that was evicted, and about a new image and one that was not.

    Returns the milliseconds of all steps of each answer, in this order. Before each pair, other images evict
    the old one.
    """
    fresh = iter(range(100, 100 + 8 * repeats))
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        old = next(fresh)
        engine.ask([old])
        for _ in range(4):
            engine.ask([next(fresh)])
        for found in times:  # the second time, the old image is resident
            found.append(engine.ask([next(fresh), old])["step_ms"])
    return times


def take_memory(engine: Engine) -> Any:
    """Encode three images in one batch, let other images evict two of them, and use the third one.

    Returns the bytes that torch has allocated on the GPU, before and after.
    """
    engine.ask([0])
    engine.reset()
    before = torch.cuda.memory_allocated()
    engine.ask([200, 201, 202])
    for number in range(203, 206):
        engine.ask([number, 202])
    return [before, torch.cuda.memory_allocated()]


def take_submit(engine: Engine, num_images: int) -> Any:
    """Return the host's microseconds of each step that loads an image, after a conversation that evicts.

    They are those of the connector's `start_load_caches`, which may queue copies, and of
    `prepare_inputs_embeds`, which may read the host's memory.
    """
    from vllm.distributed.ec_transfer import get_ec_transfer

    connector, times = get_ec_transfer(), []
    queue = connector.start_load_caches

    def start_load_caches(*arguments: Any, **named: Any) -> None:
        begin = time.perf_counter()
        queue(*arguments, **named)
        times.append(1e6 * (time.perf_counter() - begin))

    take_chat(engine, num_images)
    connector.start_load_caches = start_load_caches
    loads = []
    for number in range(LAST_IMAGES, num_images):
        times.clear()
        answer = engine.ask([number])
        loads.append(times[0] + answer["inputs_host_us"])
    return loads


STEPS: dict[str, Callable[..., Any]] = {
    name.removeprefix("take_"): step for name, step in list(globals().items()) if name.startswith("take_")
}
