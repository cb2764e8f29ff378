"""``python -m vitcache.bench.frames``: Python frames of one step, and of one forward of an attached model.

With SGLang, also those of a step of its released caller. The number of files tells how many files a reader
must open to follow a call. `sys.setprofile` counts frames in the calling thread: each time a function,
comprehension or generator of a file under vitcache/ is entered or resumed. Files of benches are not counted.
Python 3.12 and later have no frames for comprehensions, so compare only numbers of one Python version.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vitcache
from vitcache import Chunk, EmbeddingCache, Item, Items, Span, VisionPipeline

PACKAGE = str(Path(vitcache.__file__).parent) + "/"
BENCHES = PACKAGE + "bench/"  # the folder of the benches in an installed package
ITEMS = (1, 32, 512)
SGLANG_IMAGES = (1, 8, 32)
ROWS, WIDTH, PAGE_ROWS = 4, 8, 4


class Count(NamedTuple):
    """The frames of one call, by file relative to vitcache/."""

    call: str
    by_file: Counter[str]


def count_frames(call: Callable[[], object]) -> Counter[str]:
    """Return the frames of a call, by file of the package."""
    by_file: Counter[str] = Counter()

    def count_frame(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and not file.startswith(BENCHES):
            by_file[file.removeprefix(PACKAGE)] += 1

    previous_profiler = sys.getprofile()
    sys.setprofile(count_frame)
    try:
        call()
    finally:
        sys.setprofile(previous_profiler)
    return by_file


def count_embed() -> Iterator[Count]:
    """Count an `embed` whose items all miss, then one whose items all hit.

    The items have keys; the encoder returns slices of a tensor.
    """
    for number in ITEMS:
        rows, weight = torch.randn(number * ROWS, WIDTH), torch.randn(16, WIDTH)
        cache = EmbeddingCache(
            WIDTH, dtype=rows.dtype, device="cpu", device_bytes=rows.nbytes, page_rows=PAGE_ROWS
        )
        items = Items(
            [
                Item(rows[:1], Span(1 + item * (ROWS + 1), ROWS), key=item.to_bytes(32, "little"))
                for item in range(number)
            ]
        )
        ids = torch.zeros(1 + number * (ROWS + 1), dtype=torch.int64)
        encode = partial(_first_rows, rows)
        with VisionPipeline(encode, cache) as pipeline:
            step = partial(_step, pipeline, Chunk(items, 0, len(ids)), ids, weight)
            step()  # not counted: the first step of a process imports modules and fills caches
            cache.clear()
            yield Count(f"embed, {number} missing", count_frames(step))
            yield Count(f"embed, {number} hits", count_frames(step))


def _first_rows(rows: Tensor, features: list[Tensor], items: list[Item]) -> Tensor:
    return rows[: len(items) * ROWS]


def _step(pipeline: VisionPipeline, chunk: Chunk, ids: Tensor, weight: Tensor) -> None:
    _, errors = pipeline.embed([chunk], ids, weight)
    if errors:
        raise RuntimeError(errors[0])


def count_attach() -> Iterator[Count]:
    """Count a forward of an attached model for a prompt with one image: a miss, then a hit.

    The model is a Qwen3-VL with three vision layers and two deepstack levels. The number of layers matters,
    as the check of the weights enters one frame per tensor of the tower.
    """
    from vitcache.bench.chats.chat import Chat
    from vitcache.demo.model import SIZES, build_model

    vision = {**SIZES["tiny"].vision, "depth": 3, "deepstack_visual_indexes": [0, 1]}
    model = build_model(replace(SIZES["tiny"], vision=vision), torch.device("cpu"))
    chat = Chat(model, (1, 4, 4), 2)
    grid, prompt = torch.tensor([chat.grid]), chat.prompt(1)[None]

    def forward(image: int) -> None:
        with torch.no_grad():
            model(
                input_ids=prompt,
                mm_token_type_ids=(prompt == model.config.image_token_id).int(),
                pixel_values=chat.features[image],
                image_grid_thw=grid,
            )

    attachment = vitcache.attach(model)
    forward(0)  # not counted: attach always encodes the first image of a modality
    yield Count("attach, 1 missing", count_frames(partial(forward, 1)))
    yield Count("attach, 1 hit", count_frames(partial(forward, 1)))
    attachment.detach()


def count_sglang() -> Iterator[Count]:
    """Count a step of SGLang whose images all hit, without and with deepstack, and that of a new request.

    SGLang must be importable. The items of the new request have an identity.
    """
    from vitcache.bench.sglang.scene import Scene
    from vitcache.bench.sglang.sides import VITCACHE, open_sides
    from vitcache.bench.sglang.turns import Kind

    device = torch.device("cpu")
    for words, levels, kind in (
        ("sglang, {} hits", 0, Kind.SAME),
        ("sglang, {} hits, 3 levels", 3, Kind.SAME),
        ("sglang, {} hits, new", 0, Kind.IDENTITY),
    ):
        for images in SGLANG_IMAGES:
            scene = Scene(images, rows=ROWS, hidden=WIDTH, levels=levels, device=device)
            with torch.no_grad(), open_sides(scene, kind) as sides:
                side = sides[VITCACHE]
                if not all(side.is_right() for _ in range(2)):  # not counted, as for `embed`
                    raise RuntimeError(f"{VITCACHE} built other rows than a loop over images")
                side.prepare()
                yield Count(words.format(images), count_frames(side))


def main() -> None:
    """Print the number of frames of each call; with ``--by-file`` also the frames of each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by-file", action="store_true", help="print the frames of each file, too")
    by_file = parser.parse_args().by_file
    print(f"Python {platform.python_version()}, torch {torch.__version__}, frames of files under vitcache/")
    print(f"{'call':<24} {'frames':>7} {'files':>6}")
    with_sglang = () if find_spec("sglang") is None else (count_sglang(),)
    for counts in (count_embed(), count_attach(), *with_sglang):
        for count in counts:
            print(f"{count.call:<24} {count.by_file.total():>7} {len(count.by_file):>6}")
            for file, frames in count.by_file.most_common() if by_file else ():
                print(f"  {frames:>5} {file}")


if __name__ == "__main__":
    main()
