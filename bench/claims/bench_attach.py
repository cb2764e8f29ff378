"""Claim: a hit of an attached model costs the host little, also if one call has many images.

The calls are `get_image_features` of a Qwen3-VL with small images: the host's time is then the time of the
wrapper. The contender "dict" is the least that any cache does: it hashes the bytes of each image, looks the
digest up in a dict of tensors, and concatenates the rows. It does not notice changes of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import vitcache
from vitcache.bench.chats.chat import Chat
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "attach"
DEVICE = torch.device("cpu")
CLAIMS_CPU = True
GRID = (1, 4, 4)  # with PATCH_SIZE: 6 KiB of features
PATCH_SIZE = 4


@dataclass(frozen=True)
class AttachCase:
    """One call with `images` different images, which are all hits.

    `target_us` is the design's number of microseconds for the call.
    """

    images: int
    target_us: float | None

    @property
    def name(self) -> str:
        """The number of images."""
        return f"{self.images} images"


CASES = {
    "full": [AttachCase(1, 90.0), AttachCase(32, 32 * 15.0)],
    "smoke": [AttachCase(1, None), AttachCase(3, None)],
}


class DictOfRows:
    """Rows by the digest of an image's bytes."""

    def __init__(self, images: list[Tensor], rows: list[Tensor]) -> None:
        self._rows = {self._digest(image): item for image, item in zip(images, rows, strict=True)}

    def __call__(self, images: list[Tensor]) -> Tensor:
        return torch.cat([self._rows[self._digest(image)] for image in images])

    def _digest(self, image: Tensor) -> bytes:
        return blake2b(image.numpy().data, digest_size=32).digest()


def run_case(case: AttachCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    from vitcache.demo.model import SIZES, build_model

    yield "model"
    vision = {**SIZES["tiny"].vision, "depth": 3, "deepstack_visual_indexes": [0, 1]}
    size = replace(SIZES["tiny"], vision=vision, patch_size=PATCH_SIZE)
    model = build_model(size, timer.device)
    chat = Chat(model, GRID, case.images)
    pixels, grids = torch.cat(chat.features), torch.tensor([GRID] * case.images)
    attachment = vitcache.attach(model)
    with torch.no_grad():
        first = model.get_image_features(pixels, grids, return_dict=True)
        again = model.get_image_features(pixels, grids, return_dict=True)
        if attachment.stats().hits != case.images or not all(
            map(torch.equal, first.pooler_output, again.pooler_output)
        ):
            raise RuntimeError(
                f"expected {case.images} hits with the encoded rows, got {attachment.stats().hits} hits: "
                "attach gets no number"
            )
        rows = DictOfRows(chat.features, [item.clone() for item in first.pooler_output])
        yield "all in turns"
        samples = timer.rounds_us(
            {
                "dict": lambda: rows(chat.features),
                "attach": lambda: model.get_image_features(pixels, grids, return_dict=True),
            }
        )
    attachment.detach()
    for name, sample in samples.items():
        target = case.target_us if name == "attach" else None
        recorder.add(
            case.name,
            name,
            "host_us",
            "us",
            sample,
            bytes_moved=pixels.nbytes,
            against=("dict", samples["dict"].value),
            target=target,
            limit=target,
        )


def draw(rows: figures.Rows) -> Figure:
    """Draw the microseconds of a call, by the number of images that hit."""
    looks = figures.styles(("attach", "dict"))
    targets = {(row["case"], row["contender"]): row["target"] for row in rows if row["target"] is not None}
    figure, [[axes]] = figures.open_figure(height=2.6)
    figures.compare(axes, rows, looks, unit=" us", targets=targets)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    axes.set_yticks(range(len(cases)), [figures.images(case.split()[0]) for case in cases])
    axes.set(xlabel="time of the host per call (microseconds; less is better)", ylabel="images of a call")
    axes.set_xlim(left=0)
    hits = [row for row in rows if row["contender"] == "attach"]
    parts = [f"{row['value']:.0f} us for {figures.images(row['case'].split()[0])}" for row in hits]
    judged = [row for row in hits if row["meets_target"] is not None]
    verdict = "within its targets" if all(row["meets_target"] for row in judged) else "a target is missed"
    title = f"A call of an attached model that hits costs the host {' and '.join(parts)}"
    note = (
        "dict: the least that any cache does: hash the bytes of each image, look the digest up in a dict of "
        f"tensors, concatenate; it does not notice new weights. {figures.SPREAD}"
    )
    return figures.finish(figure, rows, title + (f": {verdict}" if judged else ""), note)
