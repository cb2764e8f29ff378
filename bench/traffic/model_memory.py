"""``vitcache memory --model``: the number of images of a model that each size of memory holds."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from vitcache.bench.traffic.known_models import KNOWN_MODELS, find_known, model_path
from vitcache.bench.traffic.memory_results import Held, ImageMemory, ModelMemory
from vitcache.bench.traffic.simulation import pages_for
from vitcache.bench.traffic.size_text import size_text
from vitcache.terminal.progress import Progress
from vitcache.terminal.result_file import save_figure
from vitcache.terminal.table import Table

if TYPE_CHECKING:
    import torch

    from vitcache.adapters.row_counts.image_rows import ImageRows

_SIZES = 1 << 30, 8 << 30, 32 << 30
_SIZES_PER_TABLE = 4  # columns that fit beside those of the image
_MAX_SIDE = 16384  # of an image, in pixels
_DTYPES = "bfloat16", "float16", "float32"


class ImageSize(NamedTuple):
    """Width and height of an image in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


_IMAGES = ImageSize(1280, 720), ImageSize(1920, 1080), ImageSize(2560, 1440)
DEFAULTS: dict[str, Any] = {"device_bytes": _SIZES, "images": _IMAGES, "dtype": None}
"""Of the options without ``--trace``."""


def add_arguments(group: argparse._ActionsContainer) -> None:
    """Add the options that do not go with ``--trace``."""
    group.add_argument(
        "--device-bytes",
        nargs="+",
        type=_bytes,
        default=argparse.SUPPRESS,
        metavar="SIZE",
        help=f"sizes of the cache, such as 8GiB (default: {', '.join(map(size_text, _SIZES))})",
    )
    group.add_argument(
        "--images",
        nargs="+",
        type=_image_size,
        default=argparse.SUPPRESS,
        metavar="WxH",
        help=f"widths and heights of images in pixels (default: {' '.join(map(str, _IMAGES))})",
    )
    group.add_argument(
        "--dtype",
        choices=_DTYPES,
        default=argparse.SUPPRESS,
        help="dtype of the model (default: that of its configuration, else bfloat16)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the rows of each image, and how many images each size of memory holds.

    Returns 0, or 1 if a model is not found or cannot be cached. In this case a line on stderr has the reason.
    """
    with Progress("memory") as progress:
        progress.show("imports transformers")
        import PIL  # noqa: F401  # if it is missing, the command line names it and how to install it
        import transformers

    names = list(KNOWN_MODELS) if args.model is None else args.model
    results = []
    try:
        with Progress("memory") as progress:
            for number, name in enumerate(names):
                progress.show(f"counts the rows of {name}", number, len(names))
                results.append(measure(name, args.images, args.device_bytes, args.page_rows, args.dtype))
        if args.plot is not None:
            from vitcache.bench.traffic.memory_plot import draw_models

            save_figure(draw_models(results), args.plot)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"vitcache memory: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if args.json:
        report = {"transformers": transformers.__version__, "page_rows": args.page_rows}
        print(json.dumps({**report, "models": [asdict(result) for result in results]}, indent=1))
    else:
        _report(results, args.device_bytes)
    return 0


def measure(
    name: str, sizes: Sequence[ImageSize], device_bytes: Sequence[int], page_rows: int, dtype: str | None
) -> ModelMemory:
    """Count the rows of one model's images.

    Raises
    ------
    ImportError, OSError, TypeError, ValueError
        If the model is not found, or if its images cannot be cached. The message has the reason.
    """
    from vitcache.adapters.row_counts.image_rows import RowCounter
    from vitcache.adapters.row_counts.model_source import find_model

    with _quiet_transformers(), model_path(name) as path:
        source = find_model(path)
        counter = RowCounter(source, _dtype(dtype, source.config))
        counted = {size: counter.count(size.height, size.width) for size in sizes}
    images = []
    for size, rows in counted.items():
        page_bytes, pages = page_rows * rows.row_bytes, _pages(rows, page_rows)
        held = [Held(num_bytes, num_bytes // page_bytes // pages) for num_bytes in device_bytes]
        images.append(
            ImageMemory(str(size), sum(rows.entries), len(rows.entries), pages, pages * page_bytes, held)
        )
    known = find_known(name)
    return ModelMemory(
        name,
        known and known.checkpoint,
        counter.processor.name,
        counter.processor.is_saved,
        rows.width,
        str(rows.dtype).removeprefix("torch."),
        images,
    )


def _report(results: list[ModelMemory], device_bytes: Sequence[int]) -> None:
    for start in range(0, len(device_bytes), _SIZES_PER_TABLE):
        columns = slice(start, start + _SIZES_PER_TABLE)
        sizes = [f"in {size_text(size)}" for size in device_bytes[columns]]
        heads = ["image", "rows", "entries", "pages", "size", *sizes]
        table = Table(heads, right=range(1, len(heads)))
        for result in results:
            table.begin_group(_title(result))
            for image in result.images:
                numbers = image.rows, image.entries, image.pages
                held = (f"{held.images:,}" for held in image.held[columns])
                table.add(image.image, *map(str, numbers), size_text(image.bytes), *held)
        table.print()
    print("in SIZE: images that a cache of this size holds")
    if not all(result.saved_settings for result in results):
        print("default settings: a checkpoint's preprocessor_config.json may allow other sizes")


def _title(result: ModelMemory) -> str:
    settings = "saved" if result.saved_settings else "default"
    processor = result.processor.removesuffix("Pil")
    return f"{result.model}: rows of {result.row_width} {result.dtype}, {processor} ({settings} settings)"


def _pages(rows: ImageRows, page_rows: int) -> int:
    """Return the pages of an image's entries. No two entries share a page."""
    return sum(pages_for(num_rows, page_rows) for num_rows in rows.entries)


def _dtype(name: str | None, config: Any) -> torch.dtype:
    """Return the dtype of this name or, for None, that of the configuration, else bfloat16."""
    import torch

    if name is not None:
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    given = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return given if isinstance(given, torch.dtype) else torch.bfloat16


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Within the ``with`` block, transformers logs and warns of nothing but errors."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _bytes(text: str) -> int:
    from vitcache.arguments import to_bytes  # imports torch, which a trace does not need

    try:
        return to_bytes("the size", text, 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _image_size(text: str) -> ImageSize:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    size = ImageSize(*map(int, match.groups())) if match else ImageSize(0, 0)
    if not all(1 <= side <= _MAX_SIDE for side in size):
        raise argparse.ArgumentTypeError(
            f"expected a width and a height from 1 to {_MAX_SIDE} such as 1280x720, got {text[:50]!r}"
        )
    return size
