"""Multimodal models without layers: vLLM's own token embedding and merge, and an encoder of one product.

The rows of an item do not depend on the items that share its batch, so two engines with other batches can be
compared bit for bit. vLLM must be importable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.gemma3 import Gemma3Model
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
)

NUM_IDS = 264
HIDDEN = 128
DTYPE = torch.bfloat16
NUM_LEVELS = 3
PLACEHOLDER = 262
NUM_PIXELS = 8


def make_item(number: int, num_rows: int) -> MultiModalKwargsItem:
    """Return the encoder's input of an item."""
    pixels = torch.randn(num_rows, NUM_PIXELS, generator=torch.Generator().manual_seed(number))
    flat = MultiModalFlatField(slices=[slice(0, num_rows)])
    batched = MultiModalBatchedField(keep_on_cpu=True)
    return MultiModalKwargsItem(
        {
            "pixels": MultiModalFieldElem(pixels, flat),
            "sizes": MultiModalFieldElem(torch.tensor(num_rows), batched),
            "numbers": MultiModalFieldElem(torch.tensor(number), batched),
        }
    )


class Inner(nn.Module):
    """The language model without its layers. `table` are arguments of the token embedding."""

    def __init__(self, **table: Any) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(NUM_IDS, HIDDEN, params_dtype=DTYPE, **table)
        rows = torch.randn(NUM_IDS, HIDDEN, generator=torch.Generator().manual_seed(1)).to(DTYPE)
        self.embed_tokens.weight_loader(self.embed_tokens.weight, rows)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        rows: Tensor = self.embed_tokens(input_ids)
        return rows


class Normalized(Inner):
    """Multiplies the rows of the table, as Gemma 3 does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("normalizer", torch.tensor(HIDDEN**0.5, dtype=DTYPE), persistent=False)

    embed_input_ids = Gemma3Model.embed_input_ids


class Shifted(Inner):
    """Adds a number to the rows of the table, so that only the model can look rows up."""

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return super().embed_input_ids(input_ids) + 1


class Rank(NamedTuple):
    """A rank of a group of two, which adds the part of the other rank."""

    rank_in_group: int
    other: list[VocabParallelEmbedding]
    ids: list[Tensor]
    world_size: int = 2

    def all_reduce(self, rows: Tensor) -> Tensor:
        return rows + sum(table(self.ids[-1]) for table in self.other)


class Sharded(Inner):
    """One of two tensor parallel ranks, which have one half of the table each."""

    def __init__(self) -> None:
        other = Inner(parallel_group=Rank(1, [], []), reduce_results=False)
        self._ids: list[Tensor] = []
        super().__init__(parallel_group=Rank(0, [other.embed_tokens], self._ids))

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        self._ids[:] = [input_ids]
        return super().embed_input_ids(input_ids)


class Language(nn.Module):
    """A causal language model around its inner part."""

    def __init__(self, inner: Inner) -> None:
        super().__init__()
        self.model = inner

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)


class SmallModel(nn.Module, SupportsMultiModal):
    """A model without deepstack levels. `placeholder` is the id of the tokens of items."""

    width = HIDDEN

    def __init__(self, config: Any, inner: Inner, placeholder: int = PLACEHOLDER) -> None:
        super().__init__()
        self.language_model = Language(inner)
        self.configure_mm_token_handling(NUM_IDS, [placeholder])
        factors = torch.randn(self.width, generator=torch.Generator().manual_seed(2))
        self.register_buffer("factors", factors)
        self.encoded: list[int] = []  # numbers of items
        self.num_calls = 0

    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...]:
        """Return the rows of each item, as views of the output of the batch."""
        self.num_calls += 1
        self.encoded += kwargs["numbers"].tolist()
        rows = kwargs["pixels"].repeat(1, self.width // NUM_PIXELS) * self.factors
        return rows.to(DTYPE).split(kwargs["sizes"].tolist())


class DeepstackModel(SmallModel):
    """A model with the deepstack levels of Qwen3-VL."""

    width = HIDDEN * (1 + NUM_LEVELS)

    def __init__(self, config: Any, inner: Inner, placeholder: int = PLACEHOLDER) -> None:
        super().__init__(config, inner, placeholder)
        self.use_deepstack, self.deepstack_num_level = True, NUM_LEVELS
        self.visual_dim, self.multiscale_dim = HIDDEN, HIDDEN * NUM_LEVELS
        num_tokens = config.scheduler_config.max_num_batched_tokens
        self.deepstack_input_embeds = [
            torch.zeros(num_tokens, HIDDEN, dtype=DTYPE) for _ in range(NUM_LEVELS)
        ]
        self.deepstack_input_embeds_num_tokens = 0

    embed_input_ids = Qwen3VLForConditionalGeneration.embed_input_ids
    _compute_deepstack_embeds = Qwen3VLForConditionalGeneration._compute_deepstack_embeds
    _set_deepstack_input_embeds = Qwen3VLForConditionalGeneration._set_deepstack_input_embeds
    _clear_deepstack_input_embeds = Qwen3VLForConditionalGeneration._clear_deepstack_input_embeds
