"""One step of vLLM's Model Runner V2 that builds `inputs_embeds`, without an engine.

The model is vLLM's own Qwen3-VL class with its embedding table and its deepstack buffers, and without its
layers: the class's methods merge the rows. vLLM must be importable.
"""

from __future__ import annotations

import tempfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache

REQUEST = "request"
HIDDEN, VOCABULARY, ROWS_PER_ITEM = 8, 64, 4
DTYPE = torch.float32


def join_group_of_one() -> None:
    """Make this process the only worker of an engine; a second call does nothing."""
    if not parallel_state.model_parallel_is_initialized():
        with set_current_vllm_config(VllmConfig()):
            store = f"file://{tempfile.mkdtemp()}/store"
            parallel_state.init_distributed_environment(1, 0, store, 0, "gloo")
            parallel_state.initialize_model_parallel()


class LanguageModel(nn.Module):
    """The embedding table of a language model, where vLLM's classes have it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = VocabParallelEmbedding(VOCABULARY, HIDDEN, params_dtype=DTYPE)
        self.model.embed_tokens.weight.data.normal_()

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Look the text tokens up, as vLLM's language models do."""
        return self.model.embed_tokens(input_ids)


class Qwen3VLWithoutLayers(Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with the attributes that its `embed_input_ids` reads, and without layers."""

    def __init__(self, levels: int, max_num_tokens: int) -> None:
        nn.Module.__init__(self)
        self._language_model_names = ["language_model"]
        self.use_deepstack = levels > 0
        self.deepstack_num_level = levels
        self.visual_dim, self.multiscale_dim = HIDDEN, HIDDEN * levels
        if levels:
            self.deepstack_input_embeds = [torch.zeros(max_num_tokens, HIDDEN) for _ in range(levels)]
            self.deepstack_input_embeds_num_tokens = 0
        self.language_model = LanguageModel()


class StepScene:
    """One request with `items` images whose rows are given; without an image, a decode step.

    Parameters
    ----------
    items
        Images of the prompt. Between two images there is one text token.
    levels
        Deepstack levels.
    """

    def __init__(self, items: int, levels: int) -> None:
        join_group_of_one()
        self.items, self.levels = items, levels
        self.num_tokens = items * (ROWS_PER_ITEM + 1) + 1
        self.width = HIDDEN * (1 + levels)
        self.identifiers = [f"image {item}" for item in range(items)]
        self.rows = [torch.randn(ROWS_PER_ITEM, self.width, dtype=DTYPE) for _ in range(items)]
        self.starts = [1 + item * (ROWS_PER_ITEM + 1) for item in range(items)]
        self.table = torch.randn(VOCABULARY, HIDDEN, dtype=DTYPE)
        self.batch = self._batch()
        self.config = self._config()

    def fill(self, cache: EncoderCache) -> None:
        """Add the request and the rows of its images to an encoder cache."""
        cache.add_request(
            REQUEST,
            [
                MultiModalFeatureSpec(
                    None, "image", identifier, PlaceholderRange(start, ROWS_PER_ITEM), identifier
                )
                for identifier, start in zip(self.identifiers, self.starts, strict=True)
            ],
        )
        cache.encoder_outputs.update(zip(self.identifiers, self.rows, strict=True))

    def model(self) -> Qwen3VLWithoutLayers:
        """A model of one contender; all of them have the same table."""
        with set_current_vllm_config(VllmConfig()):
            model = Qwen3VLWithoutLayers(self.levels, self.num_tokens)
        model.language_model.model.embed_tokens.weight.data.copy_(self.table)
        return model

    def truth(self) -> tuple[Tensor, Tensor]:
        """`inputs_embeds` and the deepstack buffers of this step, by plain slices."""
        embeds = self.table[self.batch.input_ids.long()]
        deepstack = torch.zeros(self.levels, self.num_tokens, HIDDEN, dtype=DTYPE)
        for start, rows in zip(self.starts, self.rows, strict=True):
            parts = rows.view(ROWS_PER_ITEM, 1 + self.levels, HIDDEN).unbind(1)
            embeds[start : start + ROWS_PER_ITEM] = parts[0]
            for level, part in enumerate(parts[1:]):
                deepstack[level, start : start + ROWS_PER_ITEM] = part
        return embeds, deepstack

    def _config(self) -> Any:
        """The options that both model states and vitcache's connector read."""
        model_config = SimpleNamespace(
            dtype=DTYPE,
            enable_prompt_embeds=False,
            enforce_eager=True,
            get_inputs_embeds_size=lambda: HIDDEN,
            max_model_len=self.num_tokens,
            model="scene",
            multimodal_config=SimpleNamespace(),
            revision=None,
            uses_mrope=False,
        )
        return SimpleNamespace(
            model_config=model_config,
            parallel_config=SimpleNamespace(prefill_context_parallel_size=1),
            scheduler_config=SimpleNamespace(max_num_seqs=1, max_num_batched_tokens=self.num_tokens),
            observability_config=None,
        )

    def _batch(self) -> InputBatch:
        """The batch that the runner passes: the whole prompt, or one token after it."""
        buffers = InputBuffers(1, self.num_tokens, torch.device("cpu"))
        batch = InputBatch.make_dummy(1, self.num_tokens, buffers)
        batch.req_ids = [REQUEST]
        batch.input_ids.copy_(torch.arange(self.num_tokens) % VOCABULARY)
        computed, prompt = (0, self.num_tokens) if self.items else (1, 1)
        batch.num_computed_tokens_np = np.array([computed], dtype=np.int32)
        batch.prefill_len_np = np.array([prompt], dtype=np.int32)
        batch.num_computed_prefill_tokens_np = batch.num_computed_tokens_np
        batch.is_prefilling_np = batch.num_computed_tokens_np < batch.prefill_len_np
        batch.has_prefill = bool(batch.is_prefilling_np.any())
        return batch
