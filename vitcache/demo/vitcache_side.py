"""The two sides that use vitcache: `CachedSide` with a `VisionPipeline`, `AttachedSide` with `attach`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache import (
    Chunk,
    EmbeddingCache,
    Item,
    Namespace,
    Span,
    VisionPipeline,
    attach,
    content_key,
    processor_fingerprint,
    spans_from_token_ids,
)
from vitcache.adapters.model_outputs import image_rows
from vitcache.adapters.vision_tower import num_levels, row_width
from vitcache.demo.conversation import Picture, Prompt
from vitcache.demo.stock_side import (
    AttachedAnswer,
    TimedAnswer,
    encode,
    pick_token,
    prefill,
    text_inputs,
    token_type_inputs,
)
from vitcache.demo.stopwatch import Stopwatch
from vitcache.demo.tower_meter import TowerMeter
from vitcache.tiers.protocol import Tier

_PAGE_ROWS = 16  # as in the cache that `attach` makes


class CachedSide:
    """Works like an engine: a `VisionPipeline` builds `inputs_embeds`, and the language model runs on it.

    `cache` must be used by this model only. `make_cache` makes one.
    """

    def __init__(self, model: Any, processor: Any, cache: EmbeddingCache) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.cache = cache
        self._meter = TowerMeter(model)
        self._levels = num_levels(model.config)
        self._namespace = Namespace(
            model=f"{type(model).__name__}, {model.num_parameters()} parameters",
            revision="seed 0",
            processor=processor_fingerprint(processor),
            dtype=str(model.dtype),
        ).digest()
        # One image per call, as the bits of its rows may depend on the other images of the call.
        self._pipeline = VisionPipeline(self._encode, self.cache, max_rows_per_encode=1)
        self._encoded = 0

    def key(self, picture: Picture) -> bytes:
        """Return the key of a picture, from its decoded pixels: fewer bytes than the processor's output."""
        return content_key(picture.photo.pixels, namespace=self._namespace)

    def answer(self, prompt: Prompt) -> TimedAnswer:
        """Run one turn: the pipeline in place of the stock encode and merge, then the language model."""
        self._encoded = 0
        with Stopwatch(self.device) as total:
            with Stopwatch(self.device) as vision:
                inputs_embeds, deepstack = self._embed(prompt)
            hidden = self._language_model(prompt, inputs_embeds, deepstack)
            pick_token(self.model, hidden)
        pixel_bytes = self._meter.take(prompt, self._encoded)
        hits = len(prompt.pictures) - self._encoded
        return TimedAnswer(hidden, self._encoded, hits, pixel_bytes, total.ms, vision.ms)

    def _embed(self, prompt: Prompt) -> tuple[Tensor, Tensor | None]:
        """Return `inputs_embeds` ``(1, T, H)`` and deepstack ``(levels, T, H)`` of a prompt, as one chunk.

        The deepstack is None if the model has no levels.
        """
        pictures, num_tokens = prompt.pictures, prompt.input_ids.numel()
        items = [
            Item(
                picture.pixel_values,
                spans,
                key=self.key(picture),
                complete_key=True,
                **_sizes(picture),
            )
            for picture, spans in zip(pictures, self._spans(prompt), strict=True)
        ]
        table = self.model.get_input_embeddings()
        shape = self._levels, num_tokens, table.weight.shape[1]
        deepstack = table.weight.new_empty(shape) if self._levels else None
        chunks = [Chunk(items, 0, num_tokens)]
        self._pipeline.fetch(chunks)  # from tiers below the host tier, if the cache has some
        result = self._pipeline.embed(
            chunks,
            prompt.input_ids.to(self.device),
            table.weight,
            deepstack=deepstack,
            text_scale=getattr(table, "scalar_embed_scale", None),  # Gemma scales the rows of text
        )
        for error in result.errors:
            raise error.cause
        return result.inputs_embeds, deepstack

    def _encode(self, features: list[Tensor], items: list[Item]) -> list[Tensor]:
        self._encoded += len(items)
        return [
            image_rows(encode(self.model, {"pixel_values": pixels, **item.encoder_kwargs}))
            for pixels, item in zip(features, items, strict=True)
        ]

    def _spans(self, prompt: Prompt) -> list[list[Span]]:
        num_rows = [picture.num_rows for picture in prompt.pictures]
        return spans_from_token_ids(prompt.input_ids, self.model.config.image_token_id, num_rows)

    def _language_model(self, prompt: Prompt, inputs_embeds: Tensor, deepstack: Tensor | None) -> Tensor:
        base = self.model.model
        inputs: dict[str, Any] = {}
        if hasattr(base, "get_rope_index"):
            # Computed on the host, where all inputs are, so that the host does not wait for the device.
            positions, _ = base.get_rope_index(prompt.input_ids, prompt.token_types, **prompt.sizes)
            inputs["position_ids"] = positions.to(self.device)
        if deepstack is None:
            for name, types in token_type_inputs(self.model, prompt).items():
                inputs[name] = types.to(self.device)
            hidden: Tensor = base(inputs_embeds=inputs_embeds, **inputs).last_hidden_state
            return hidden
        visual_tokens = _tokens(self._spans(prompt)).to(self.device)
        hidden = base.language_model(
            inputs_embeds=inputs_embeds,
            visual_pos_masks=prompt.token_types.bool().to(self.device),
            deepstack_visual_embeds=list(deepstack.index_select(1, visual_tokens)),
            **inputs,
        ).last_hidden_state
        return hidden


class AttachedSide:
    """The stock forward of an attached model. Pixels stay on the host until their image must be encoded."""

    def __init__(self, model: Any, pictures: list[Picture], tiers: Sequence[Tier] = ()) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.attachment = attach(model, device_bytes=_bytes_for(pictures, model), tiers=tiers)
        self._meter = TowerMeter(model)

    def answer(self, prompt: Prompt) -> AttachedAnswer:
        """Run one turn. The vision part is inside the forward and is not timed separately."""
        before = self.attachment.stats()
        with Stopwatch(self.device) as total:
            inputs = text_inputs(self.model, prompt)
            hidden = prefill(self.model, **inputs, pixel_values=prompt.pixel_values)
        after = self.attachment.stats()
        encoded, hits = after.encoded - before.encoded, after.hits - before.hits
        moved = after.pixel_bytes_moved - before.pixel_bytes_moved
        pixel_bytes = self._meter.take(prompt, encoded)
        if moved != (0 if self.device.type == "cpu" else pixel_bytes):
            raise RuntimeError(
                f"attach counted {moved} bytes of moved pixels, its vision tower got {pixel_bytes}"
            )
        placed = after.placed_calls - before.placed_calls
        unplaced = Counter(after.unplaced_calls) - Counter(before.unplaced_calls)
        return AttachedAnswer(hidden, encoded, hits, pixel_bytes, total.ms, placed, dict(unplaced))


def make_cache(model: Any, pictures: list[Picture], *, on_device: int | None = None) -> EmbeddingCache:
    """Return a cache on the model's device with space for the rows of all `pictures`.

    With `on_device`, the device tier has space for the first `on_device` pictures only, and the host tier
    for all.
    """
    return EmbeddingCache(
        row_width(model.config),
        dtype=model.dtype,
        device=model.device,
        device_bytes=_bytes_for(pictures[:on_device], model),
        host_bytes=0 if on_device is None else _bytes_for(pictures, model),
        page_rows=_PAGE_ROWS,
    )


def _sizes(picture: Picture) -> dict[str, Any]:
    return {name: value for name, value in picture.features.items() if name != "pixel_values"}


def _bytes_for(pictures: list[Picture], model: Any) -> int:
    """Return the bytes of the pages that the rows of all pictures need in a cache."""
    pages = sum(-(-picture.num_rows // _PAGE_ROWS) for picture in pictures)
    return int(pages * _PAGE_ROWS * row_width(model.config) * model.dtype.itemsize)


def _tokens(spans: list[list[Span]]) -> Tensor:
    """Return the indices of all image tokens, ascending."""
    return torch.cat([torch.arange(span.start, span.stop) for item in spans for span in item])
