"""One step of one request, from keys to `inputs_embeds`, as in vLLM; re-expressed, with sources.

`Vllm` does the work of the engine's model runner. The work of its scheduler, such as the accounting of the
encoder cache, is left out, and so is the sorting of items by modality before an encode.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from vitcache.bench.chats.gathers import ROWS, Gather, Request


@dataclass(frozen=True)
class PlaceholderRange:
    """The tokens of one item. `is_embed` tells which of them have a row; None: each token has one."""

    offset: int
    length: int
    is_embed: Tensor | None = None

    @property
    def stop(self) -> int:
        """The token behind the last one."""
        return self.offset + self.length

    @cached_property
    def _rows_before(self) -> list[int]:
        assert self.is_embed is not None
        return [0, *self.is_embed.cumsum(0).tolist()]

    def row_range(self, first: int, stop: int) -> tuple[int, int]:
        """Return the first row, and the row behind the last one, of these tokens of the item."""
        if self.is_embed is None:
            return first, stop
        return self._rows_before[first], self._rows_before[stop]


@dataclass(frozen=True)
class VllmFeature:
    """One item of a request."""

    identifier: str
    modality: str
    position: PlaceholderRange


class Vllm(Gather):
    """vLLM 0.33.0, the default runner: v1/worker/gpu/mm/encoder_runner.py.

    `gather_mm_embeddings` makes a mask on the CPU and a list of slices; get_inputs_embeds copies the result
    to a buffer with a fixed address. The merge between them is ``_merge_multimodal_embeddings`` of
    model_executor/models/utils.py, and the ids of placeholders are set to 0 before the text look-up. The
    older runner (v1/worker/gpu_model_runner.py) gathers in the same way.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._outputs: dict[str, Tensor] = {}
        self._features = [
            VllmFeature(key.hex(), "image", PlaceholderRange(start, ROWS))
            for key, start in zip(request.keys, request.starts, strict=True)
        ]
        self._num_tokens = np.array([request.num_tokens])
        self._buffer = torch.zeros(request.num_tokens, request.weight.shape[1])

    def forget(self) -> None:
        """See `Gather`."""
        self._outputs.clear()

    def step(self) -> Tensor:
        """See `Gather`."""
        request = self.request
        missing = [i for i, item in enumerate(self._features) if item.identifier not in self._outputs]
        if missing:
            identifiers = [self._features[i].identifier for i in missing]
            self._outputs.update(zip(identifiers, request.encode(missing), strict=True))
        slices, mask = self.gather(np.array([0]))
        out = embedding(request.ids.masked_fill(mask, 0), request.weight)
        out[mask] = torch.cat(tuple(rows.flatten(0, -2) for rows in slices)).to(out.dtype)
        self._buffer[: len(out)] = out
        return self._buffer

    def gather(self, num_computed: np.ndarray) -> tuple[list[Tensor], Tensor]:
        """Return the slices that the window needs, and the mask of their tokens."""
        mask = torch.zeros(int(self._num_tokens.sum()), dtype=torch.bool, device="cpu")
        is_decode = num_computed >= self._num_tokens
        if is_decode.all():
            return [], mask
        excluded, begins = is_decode.tolist(), num_computed.tolist()
        ends = (num_computed + self._num_tokens).tolist()
        slices: list[Tensor] = []
        for features, is_excluded, begin, end in zip([self._features], excluded, begins, ends, strict=True):
            if is_excluded:
                continue
            lowest = bisect_right(features, begin, key=lambda item: item.position.stop)
            highest = bisect_left(features, end, key=lambda item: item.position.offset)
            for index in range(lowest, highest):
                feature = features[index]
                place = feature.position
                first, stop = max(begin - place.offset, 0), min(end - place.offset, place.length)
                first_row, stop_row = place.row_range(first, stop)
                if first_row == stop_row:
                    continue
                output = self._outputs.get(feature.identifier)
                if output is None:
                    raise RuntimeError(f"the encoder output of {feature.identifier} is missing")
                rows = output[first_row:stop_row]
                rows.modality = feature.modality  # type: ignore[attr-defined]
                at = place.offset - begin
                mask[at + first : at + stop] |= True if place.is_embed is None else place.is_embed[first:stop]
                slices.append(rows)
        return slices, mask
