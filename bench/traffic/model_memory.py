"""``python -m vitcache memory --model``: the number of images of a model that each size of memory holds."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from vitcache.bench.traffic.simulation import pages_for
from vitcache.bench.traffic.size_text import size_text

if TYPE_CHECKING:
    import torch

    from vitcache.adapters.row_counts.image_rows import ImageRows, RowCounter

_SIZES = 1 << 30, 8 << 30, 32 << 30
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
"""Of the options with ``--model``."""


def add_model_option(sources: argparse._ActionsContainer) -> None:
    """Add the option that chooses this part of the command."""
    sources.add_argument(
        "--model",
        metavar="MODEL",
        help="print how many images of this model a cache holds: a config.json, a folder with one, a "
        "checkpoint in the local Hugging Face cache, or a model type of transformers such as qwen3_vl; "
        "nothing is downloaded",
    )


def add_arguments(group: argparse._ActionsContainer) -> None:
    """Add the options that go with ``--model``."""
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

    Returns 0, or 1 if the model is not found or cannot be cached. In this case a line on stderr has the
    reason.
    """
    import PIL  # noqa: F401  # if it is missing, the command line names it and how to install it
    import transformers  # noqa: F401

    from vitcache.adapters.row_counts.image_rows import RowCounter
    from vitcache.adapters.row_counts.model_source import find_model

    try:
        with _quiet_transformers():
            source = find_model(args.model)
            counter = RowCounter(source, _dtype(args.dtype, source.config))
            images = {size: counter.count(size.height, size.width) for size in args.images}
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"vitcache memory: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    _report(args, counter, images)
    return 0


def _report(args: argparse.Namespace, counter: RowCounter, images: dict[ImageSize, ImageRows]) -> None:
    processor = counter.processor
    print(
        f"images as {processor.name} prepares them, "
        + ("with its saved settings" if processor.is_saved else "with settings for this configuration")
    )
    if not processor.is_saved:
        print("a checkpoint's preprocessor_config.json may allow larger or smaller images")
    needed = {size: _pages(rows, args.page_rows) for size, rows in images.items()}
    for size, rows in images.items():
        row = f"{rows.width} {str(rows.dtype).removeprefix('torch.')} elements"
        bytes_ = needed[size] * args.page_rows * rows.row_bytes
        print(f"{size}: {_entries(rows)} of {row}, {needed[size]} pages, {size_text(bytes_)}")
    for num_bytes in args.device_bytes:
        for size, rows in images.items():
            num_pages = num_bytes // (args.page_rows * rows.row_bytes)
            print(f"{size_text(num_bytes)} hold {num_pages // needed[size]} images of {size}")


def _entries(rows: ImageRows) -> str:
    total = f"{sum(rows.entries)} rows"
    return total if len(rows.entries) == 1 else f"{len(rows.entries)} entries with {total}"


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
