"""One turn of the conversation through every side, compared and measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from typing import Any, NamedTuple

import torch
import transformers

from vitcache.adapters.model_outputs import image_rows
from vitcache.demo.conversation import Features, Picture, Prompt, build_prompt, process
from vitcache.demo.families import FAMILIES, LARGE
from vitcache.demo.family import Family
from vitcache.demo.logits import compare_logits
from vitcache.demo.model import random_model, share_weights
from vitcache.demo.photos import load_photos
from vitcache.demo.row import TIMES, Row
from vitcache.demo.stock_side import StockSide, encode
from vitcache.demo.vitcache_side import AttachedSide, CachedSide, make_cache


class Sides(NamedTuple):
    """The same model three times: stock, with rows placed by vitcache, and with vitcache attached."""

    stock: StockSide
    cached: CachedSide
    attached: AttachedSide


def find_family(name: str, size: str) -> Family:
    """Return the family of this name, with a model of this size: ``"tiny"`` or ``"8b"``."""
    return (LARGE if size == "8b" else FAMILIES)[name]


def build(family: Family, device: torch.device) -> Any:
    """Return the model of a family, with random weights."""
    return random_model(family.make_config(), family.dtype, device)


def process_photos(family: Family, model: Any, turns: int) -> tuple[Any, list[Picture]]:
    """Return the image processor, and the first photographs as it prepares them.

    The stock model encodes each image once, to tell its number of rows.
    """
    processor = family.make_processor()

    def count_runs(features: Features) -> tuple[int, ...]:
        num_rows = len(image_rows(encode(model, features)))
        if family.row_pixels is None:
            return (num_rows,)
        _, width = features["image_sizes"][0].tolist()
        line = int(width) // family.row_pixels
        return (line,) * (num_rows // line)

    pictures = [
        process(photo, processor, count_runs, family.inputs, family.images_in) for photo in load_photos(turns)
    ]
    return processor, pictures


def build_sides(stock: Any, processor: Any, pictures: list[Picture]) -> Sides:
    """Copy the stock model. The stock side uses the model, the other two sides share the copy."""
    copied = copy.deepcopy(stock)
    return Sides(
        StockSide(stock),
        CachedSide(copied, processor, make_cache(copied, pictures)),
        AttachedSide(share_weights(copied), pictures),
    )


def warm_up(sides: Sides, pictures: list[Picture]) -> None:
    """Run every vision batch once on every side, so that no first call is measured; then empty the caches.

    The stock model runs the prompt of every turn, because each is a batch of another size. The other sides
    encode one image at a time, so they run only the longest prompt.
    """
    config = sides.stock.model.config
    for turn in range(1, len(pictures)):
        sides.stock.answer(build_prompt(pictures[:turn], config))
    longest = build_prompt(pictures, config)
    for side in sides:
        side.answer(longest)
    empty_caches(sides)


def empty_caches(sides: Sides) -> None:
    """Remove all entries, so that the conversation can begin anew."""
    sides.cached.cache.clear()
    sides.attached.attachment.cache.clear()


def measure_turn(sides: Sides, prompt: Prompt) -> Row:
    """Run one turn on every side; return the times, the counts and the comparison of the logits."""
    stock = sides.stock.answer(prompt)
    cached = sides.cached.answer(prompt)
    attached = sides.attached.answer(prompt)
    one_at_a_time = sides.stock.answer_one_at_a_time(prompt)
    reference = (sides.stock.model, one_at_a_time)
    equal, _ = compare_logits(reference, (sides.cached.model, cached.hidden))
    equal_attach, _ = compare_logits(reference, (sides.attached.model, attached.hidden))
    _, spread = compare_logits(reference, (sides.stock.model, stock.hidden))
    return Row(
        turn=len(prompt.pictures),
        images=len(prompt.pictures),
        encoded_stock=stock.encoded,
        encoded=cached.encoded,
        encoded_attach=attached.encoded,
        hits=cached.hits,
        hits_attach=attached.hits,
        vision_ms_stock=stock.vision_ms,
        vision_ms=cached.vision_ms,
        ttft_ms_stock=stock.ttft_ms,
        ttft_ms=cached.ttft_ms,
        ttft_ms_attach=attached.ttft_ms,
        pixel_bytes_stock=stock.pixel_bytes,
        pixel_bytes=cached.pixel_bytes,
        pixel_bytes_attach=attached.pixel_bytes,
        equal=equal and equal_attach,
        equal_attach=equal_attach,
        spread_stock=spread,
        placed_calls_attach=attached.placed_calls,
        unplaced_calls_attach=attached.unplaced_calls,
    )


def time_turn(sides: Sides, prompt: Prompt, first: Row) -> dict[str, float]:
    """Run one turn on every side once more; return its times by their names in `Row`.

    Raises
    ------
    RuntimeError
        If a side encodes another number of images than in the `first` run.
    """
    stock = sides.stock.answer(prompt)
    cached = sides.cached.answer(prompt)
    attached = sides.attached.answer(prompt)
    if (cached.encoded, attached.encoded) != (first.encoded, first.encoded_attach):
        raise RuntimeError(
            f"expected {first.encoded} and {first.encoded_attach} encodes in turn {first.turn}, as in the "
            f"first run, got {cached.encoded} and {attached.encoded}"
        )
    times = (stock.vision_ms, cached.vision_ms, stock.ttft_ms, cached.ttft_ms, attached.ttft_ms)
    return dict(zip(TIMES, times, strict=True))


def converse(family: Family, turns: int, repeats: int, step: Callable[[str], None]) -> list[Row]:
    """Run the whole conversation `repeats` times, on the GPU if there is one; return one row per turn.

    Each run begins with empty caches. The first run compares the logits. `step` is called with a description
    of each step. Without a GPU, PyTorch runs on one thread: a model that is small enough for a CPU gains
    little from more threads, which wait for each other on a busy machine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step(f"building {family.title} with random weights on {device.type}")
    rows = []
    with torch.no_grad(), nullcontext() if device.type == "cuda" else one_thread():
        stock = build(family, device)
        step("preparing photographs")
        processor, pictures = process_photos(family, stock, turns)
        sides = build_sides(stock, processor, pictures)
        config = sides.stock.model.config
        step("warming up: every turn through stock, the longest prompt through every side")
        warm_up(sides, pictures)
        prompts = [build_prompt(pictures[:turn], config) for turn in range(1, turns + 1)]
        for prompt in prompts:
            step(f"turn {len(prompt.pictures)} of {turns}: {prompt.pictures[-1].photo.name}")
            rows.append(measure_turn(sides, prompt))
        times = []
        for repeat in range(2, repeats + 1):
            step(f"run {repeat} of {repeats}, for the times")
            empty_caches(sides)
            times.append([time_turn(sides, prompt, row) for prompt, row in zip(prompts, rows, strict=True)])
    return [row.with_runs([run[index] for run in times]) for index, row in enumerate(rows)]


def describe(family: Family) -> dict[str, str]:
    """Return the device, the model and the versions that `converse` measures with."""
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu, one thread",
        "model": family.title,
        "dtype": str(family.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch's CPU work on one thread within a ``with`` block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
