"""`EncoderCalls`: calls the encoders of a model of SGLang as `VisionPipeline` calls an encoder."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.engine_modules import RUNTIME_CONTEXT, parallel_value
from vitcache.adapters.sglang.options import Options
from vitcache.adapters.sglang.ranks import Ranks
from vitcache.pipeline.items import Item
from vitcache.pipeline.vision_pipeline import MAX_ROWS_PER_ENCODE
from vitcache.rows import DTYPES

Embedder = Callable[[list[Any]], Any]


def num_encoder_ranks() -> int:
    """Return the number of ranks that share the items of a call (`--mm-enable-dp-encoder`), or 1."""
    context = sys.modules.get(RUNTIME_CONTEXT)
    try:
        is_shared = context is not None and context.get_mm().mm_enable_dp_encoder
    except ValueError:  # the process has no configuration of SGLang
        is_shared = False
    return int(parallel_value("attn_tp_size", 1)) if is_shared else 1


def max_rows_per_encode(options: Options) -> int:
    """Return the most rows of one call: the option, or the pipeline's default times the ranks of a call."""
    return options.max_rows_per_encode or MAX_ROWS_PER_ENCODE * num_encoder_ranks()


class PrunedVideo(Exception):
    """An encoder has pruned rows of a video, and SGLang must move the placeholders."""


class EncoderCalls:
    """The encoders of one model, by modality. One thread uses it.

    Parameters
    ----------
    dtype
        The dtype of the text rows.
    ranks
        Compares the calls of tensor parallel ranks; None: there is one rank.
    """

    def __init__(self, counts: Counts, dtype: torch.dtype, ranks: Ranks | None = None) -> None:
        self._counts = counts
        self._dtype = dtype
        self._ranks = ranks
        self._model: Any = None
        self._functions: Mapping[Any, Embedder] = {}

    def use(self, model: Any, functions: Mapping[Any, Embedder] | None) -> None:
        """Take the encoders of a step. Some models of SGLang make closures in each forward pass.

        Parameters
        ----------
        model
            The model, which may have methods such as `get_image_feature`.
        functions
            Functions by modality, which precede the methods.
        """
        self._model, self._functions = model, functions or {}

    def embedder(self, modality: Any) -> Embedder | None:
        """Return the encoder for a modality of SGLang, or None."""
        function = self._functions.get(modality)
        if function is None:
            function = getattr(self._model, f"get_{modality.name.lower()}_feature", None)
        return function

    def encode(self, features: list[Any], items: list[Item]) -> Sequence[Tensor] | Tensor:
        """Encode items: one call of an encoder per modality. As ``encode`` of `VisionPipeline`.

        Raises
        ------
        PrunedVideo
            If an encoder returns a result that names the rows of each frame.
        ValueError
            If a model has no encoder for a modality, or an encoder returns another number of rows than
            several items of different modalities need.
        RanksDiffer
            As `Ranks.call`.
        """
        modalities = {item.context.modality: None for item in items}  # a dict, for their order
        if len(modalities) == 1:
            return self._call(next(iter(modalities)), features, items)
        rows: dict[int, Tensor] = {}
        for modality in modalities:
            numbers = [number for number, item in enumerate(items) if item.context.modality is modality]
            group = [items[number] for number in numbers]
            found = self._call(modality, [features[number] for number in numbers], group)
            parts = _split(found, group) if isinstance(found, Tensor) else found
            rows.update(zip(numbers, parts, strict=True))
        return [rows[number] for number in range(len(items))]

    def _call(self, modality: Any, features: list[Any], items: list[Item]) -> list[Tensor] | Tensor:
        embedder = self.embedder(modality)
        if embedder is None:
            raise ValueError(f"the model has no encoder for items of modality {modality.name}")
        sources = [_source(*pair) for pair in zip(items, features, strict=True)]
        if self._ranks is None:
            return self._rows(embedder, sources)
        # Rows that one rank alone cannot convert are an end of the call, too: it must not call once more.
        rows: list[Tensor] | Tensor = self._ranks.call(partial(self._rows, embedder), sources)
        return rows

    def _rows(self, embedder: Embedder, sources: list[Any]) -> list[Tensor] | Tensor:
        """Call an encoder, and return the rows of all items, or of each."""
        found = embedder(sources)
        self._counts.encodes += len(sources)
        if hasattr(found, "num_tokens_per_frame"):  # an `EVSEmbeddingResult`
            raise PrunedVideo(f"the encoder for items of modality {sources[0].modality.name} prunes rows")
        if isinstance(found, list | tuple):
            return [self._flat(rows) for rows in found]
        rows: Tensor = self._flat(found)
        return rows

    def _flat(self, rows: Any) -> Any:
        """Return rows of more than two dimensions as ``(rows, row_width)``; the pipeline checks the rest."""
        if not isinstance(rows, Tensor):
            return rows
        if rows.is_floating_point() and rows.dtype not in DTYPES:  # such as float64: SGLang converts it
            rows = rows.to(self._dtype)
        return rows.reshape(-1, rows.shape[-1]) if rows.dim() > 2 else rows


def _source(item: Item, feature: Any) -> Any:
    """Return the item of SGLang, with the moved feature if the pipeline has moved it.

    It is a copy then: SGLang's item keeps its feature in host memory, and nothing is copied back.
    """
    source = item.context
    if not item.move_feature or feature is source.feature:
        return source
    source = copy.copy(source)
    source.feature = feature
    return source


def _split(rows: Tensor, items: Sequence[Item]) -> list[Tensor]:
    counts = [item.num_rows for item in items]
    if len(rows) != sum(counts):
        raise ValueError(
            f"the encoder must return {sum(counts)} rows for {len(items)} items, got {len(rows)}"
        )
    return list(rows.split(counts))
