"""Claim: a decoded token costs the host the same, whatever the number of pages that the chat has.

`ChunkedPrefill` runs a prompt of many images, and then one more token per call. The language model is
replaced by one that only counts tokens, so that the time is the host's time in vitcache: comparing the
prompt, its positions, `inputs_embeds` and the launch. The contender "positions of all tokens" is a caller
that does not keep positions: it calls `get_rope_index` of transformers for the whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitcache import EmbeddingCache, Item, Items, Span, VisionPipeline
from vitcache.bench.chats.chat import image_key
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "decode"
DEVICE = torch.device("cpu")
CLAIMS_CPU = True
TOKEN_US = 2_000.0  # target of the design for 600 pages
FLAT = 1.3  # target: the largest ratio between the cost at 300 and at 30 pages
TEXT_TOKENS = 6  # per page, around the image
GRID = (1, 20, 12)
PATCHES_PER_ROW = 4
WHOLE_PROMPT = "positions of all tokens"


@dataclass(frozen=True)
class DecodeCase:
    """Chats of these numbers of pages. The targets are for 300 and 600 pages."""

    pages: tuple[int, ...]

    @property
    def name(self) -> str:
        """All cases are the same claim: the contenders are the numbers of pages."""
        return "one token"


CASES = {"full": [DecodeCase((30, 300, 600))], "smoke": [DecodeCase((2, 3))]}


class CountingModel(nn.Module):
    """Stands in for the language model: returns its input, and adds tokens without a size to the KV cache."""

    def forward(self, inputs_embeds: Tensor, past_key_values: Any, **_: Any) -> Any:
        """Add the tokens of `inputs_embeds` to the first layer of the KV cache."""
        layer = past_key_values.layers[0]
        if not layer.is_initialized:
            layer.lazy_initialization(inputs_embeds, inputs_embeds)
        length = layer.get_seq_length() + inputs_embeds.shape[1]
        layer.keys = layer.values = torch.zeros(1, 1, 1, 1).expand(1, 1, length, 1)
        return SimpleNamespace(last_hidden_state=inputs_embeds)


class Pages:
    """A chat of `count` pages, whose prompt grows by one token per call."""

    def __init__(self, model: Any, pipeline: VisionPipeline, count: int) -> None:
        from vitcache.adapters.transformers import ChunkedPrefill

        config, rows = model.config, GRID[1] * GRID[2] // PATCHES_PER_ROW
        page = [5] * (TEXT_TOKENS - 2) + [config.vision_start_token_id]
        page += [config.image_token_id] * rows + [config.vision_end_token_id]
        self._ids = torch.tensor([page * count])
        shared = torch.zeros(1, pipeline.cache.row_width).expand(rows, -1)
        starts = [number * len(page) + TEXT_TOKENS - 1 for number in range(count)]
        self._items = Items(
            [
                Item(None, Span(start, rows), rows=shared, key=image_key(number), grid_thw=list(GRID))
                for number, start in enumerate(starts)
            ]
        )
        self._chat = ChunkedPrefill(model, pipeline)
        self._chat.prefill(self._ids, self._items)
        self._rope = model.model.get_rope_index
        self._types = (self._ids == config.image_token_id).int()
        self._grids = torch.tensor([GRID] * count)

    def decode(self) -> Tensor:
        """Run one more token."""
        self._ids = torch.cat([self._ids, torch.tensor([[7]])], dim=1)
        return self._chat.prefill(self._ids, self._items)

    def check(self) -> None:
        """Raise RuntimeError unless the positions that were kept are those of the stock model."""
        expected = self.all_positions()[:, 0].numpy()
        found = self._chat.conversation.transcript.positions(0, expected.shape[1])
        if not (found == expected).all():
            wrong = int((found != expected).any(axis=0).sum())
            raise RuntimeError(
                f"expected the positions of the stock model, got {wrong} wrong ones: no number"
            )

    def all_positions(self) -> Tensor:
        """Compute the positions of the prompt before the decoded tokens."""
        ids = self._ids[:, : self._types.shape[1]]
        positions: Tensor = self._rope(ids, self._types, image_grid_thw=self._grids)[0]
        return positions


def run_case(case: DecodeCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    from vitcache.adapters.transformers import vision_pipeline
    from vitcache.adapters.vision_tower import row_width
    from vitcache.demo.model import SIZES, build_model

    yield "model"
    model = build_model(SIZES["tiny"], timer.device)
    model.model.language_model.forward = CountingModel().forward
    width = row_width(model.config)
    cache = EmbeddingCache(width, dtype=torch.float32, device_bytes=64 * 4 * width)
    with vision_pipeline(model, cache) as pipeline:
        yield "first prompts"
        chats = {f"{count} pages": Pages(model, pipeline, count) for count in case.pages}
        for chat in chats.values():
            chat.decode()
            chat.check()
        *_, longest = chats.values()
        yield "tokens in turns"
        samples = timer.rounds_us({name: chat.decode for name, chat in chats.items()})
        yield WHOLE_PROMPT
        # Not in turns with the chats: this contender evicts their data from the processor's caches.
        samples |= timer.rounds_us({WHOLE_PROMPT: longest.all_positions})
    first = f"{case.pages[0]} pages"
    base = samples[first].value
    targets = {"300 pages": (FLAT, FLAT * base), "600 pages": (TOKEN_US, TOKEN_US)}
    for name, sample in samples.items():
        target, limit = targets.get(name, (None, None))
        recorder.add(
            case.name, name, "host_us", "us", sample, against=(first, base), target=target, limit=limit
        )


def draw(rows: figures.Rows) -> Figure:
    """Draw the milliseconds of a decoded token, by the number of pages that the chat has."""
    # A page of a chat is one image. In a figure, pages would be taken for those of the cache.
    names = {row["contender"]: row["contender"].replace(" pages", " images") for row in rows}
    names[WHOLE_PROMPT] = "positions of all tokens,\nby get_rope_index"
    rows = [{**row, "case": names[row["contender"]], "contender": "vitcache"} for row in rows]
    other = names[WHOLE_PROMPT]
    for row in rows:
        row["contender"] = "a caller that keeps no positions" if row["case"] == other else "vitcache"
    figure, [[axes]] = figures.open_figure(height=0.6 + 0.4 * len(rows))
    axes.set_xscale("log")
    looks = figures.styles(("vitcache", "a caller that keeps no positions"))
    longest = next((row["case"] for row in rows if row["target"] == TOKEN_US), None)
    if longest:
        figures.target(axes, TOKEN_US / 1e3, f" target for {longest}: {TOKEN_US / 1e3:g} ms", upright=True)
    for place, row in enumerate(rows):
        figures.point(axes, row, place, looks[row["contender"]], scale=1e-3, unit=" ms")
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows])
    axes.set(
        ylim=(len(rows) - 0.5, -0.5),
        xlabel="time of the host per decoded token (milliseconds; less is better)",
        ylabel="chat",
    )
    figures.log_ticks(axes)
    kept = [row for row in rows if row["contender"] == "vitcache"]
    title = (
        f"A decoded token costs the host {kept[0]['value'] / 1e3:.2f} ms after {kept[0]['case']} and "
        f"{kept[-1]['value'] / 1e3:.2f} ms after {kept[-1]['case']}"
    )
    note = (
        f"The language model only counts tokens: the time is that of vitcache on the host. {figures.SPREAD}"
    )
    return figures.finish(figure, rows, title, note)
