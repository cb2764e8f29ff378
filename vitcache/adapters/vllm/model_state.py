"""`VitCacheModelState`: the part of vLLM's Model Runner V2 that makes `inputs_embeds`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.utils import sanity_check_mm_encoder_outputs

from vitcache.adapters.vllm.connector import VitCacheConnector
from vitcache.adapters.vllm.feature_batches import FeatureBatches
from vitcache.adapters.vllm.internals import (
    DEEPSTACK_ATTRIBUTES,
    ENCODER_ATTRIBUTES,
    LORA_ATTRIBUTES,
    MODEL_ATTRIBUTES,
    RUNNER_ATTRIBUTES,
    STATE_ATTRIBUTES,
    check_attributes,
    check_internals,
)
from vitcache.adapters.vllm.plugin import logger
from vitcache.adapters.vllm.step_placement import StepPlacement
from vitcache.adapters.vllm.store import Store
from vitcache.adapters.vllm.text_rows import TextRows
from vitcache.placement.start_up import warm_up
from vitcache.tracing import traced


class VitCacheModelState(DefaultModelState):
    """vLLM's `DefaultModelState`, whose rows vitcache places.

    `prepare_inputs_embeds` encodes the items that vLLM's encoder cache lacks in micro-batches, whose features
    cross the bus through a pinned ring. Then one launch writes text rows, rows of items and deepstack levels.
    It also writes fresh rows to their pages, and reads rows of the host tier from pinned memory.

    In these cases, vLLM's merge writes the rows: the model prunes rows of videos, takes embeddings in place
    of prompts, or is a realtime model; ranks share a prompt (prefill context parallelism); or the model looks
    text rows up itself, and cannot look up ids of placeholders.

    Notes
    -----
    vLLM makes one for each worker of Model Runner V2, and calls it from the worker's thread.
    """

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        check_internals()
        super().__init__(vllm_config, model, encoder_cache, device)
        check_attributes(self, STATE_ATTRIBUTES)
        self._connector = VitCacheConnector.of_worker()
        self._placement: StepPlacement | None = None  # None: vLLM's merge writes the rows
        self._batches: FeatureBatches | None = None  # None: vLLM encodes in its own batches
        self._has_levels = self._has_logged = False
        if not self.supports_mm_inputs or self._connector is None:  # a later pipeline stage has no encoder
            return
        check_attributes(self, ENCODER_ATTRIBUTES)
        check_attributes(self.encoder_runner, RUNNER_ATTRIBUTES)
        check_attributes(model, MODEL_ATTRIBUTES)
        self._has_levels = bool(getattr(model, DEEPSTACK_ATTRIBUTES[0], None))
        if self._has_levels:
            check_attributes(model, DEEPSTACK_ATTRIBUTES)
        text = TextRows.of_model(model, self.dtype)
        lora = vllm_config.lora_config
        if lora is not None:
            check_attributes(lora, LORA_ATTRIBUTES)
        if lora is None or not lora.enable_tower_connector_lora:
            self._batches = FeatureBatches(device, self._connector.make_ring(device))
        merge_reason = self._find_merge_reason(text)
        self._connector.expect_model_state(merge_reason)
        if merge_reason is None:
            self._placement = StepPlacement(text, encoder_cache.mm_features)
            self._warm_up(text)
            lookup = "in the same launch as text rows" if text.source == "table" else "after text rows"
            logger.info("vitcache places rows of items in inputs_embeds, %s", lookup)

    def remove_request(self, req_id: str) -> None:
        """Forget a request."""
        super().remove_request(req_id)
        if self._placement is not None:
            self._placement.forget(req_id)

    @torch.inference_mode()
    def prepare_inputs_embeds(
        self, scheduled_encoder_inputs: dict[str, list[int]], input_batch: Any, req_states: Any
    ) -> Tensor:
        """Encode the items of this step, and return its `inputs_embeds` with all rows."""
        store = self._store
        if store is None or self._placement is None:
            merged: Tensor = super().prepare_inputs_embeds(scheduled_encoder_inputs, input_batch, req_states)
            return merged
        if scheduled_encoder_inputs:
            self._encode_items(scheduled_encoder_inputs, store)
        num_tokens = input_batch.num_tokens
        inputs_embeds: Tensor = self.encoder_runner.inputs_embeds
        ids, out = input_batch.input_ids[:num_tokens], inputs_embeds[:num_tokens]
        self._clear_levels()
        levels = None
        if self._has_levels and input_batch.has_prefill:
            levels = [level[:num_tokens] for level in self.model.deepstack_input_embeds]
        num_placed = self._placement.place(input_batch, ids, out, levels, store)
        if levels and num_placed:
            self.model.deepstack_input_embeds_num_tokens = num_tokens
        return inputs_embeds[: input_batch.num_tokens_after_padding]

    def execute_mm_encoder(self, scheduled_encoder_inputs: dict[str, list[int]]) -> None:
        """Encode items for vLLM's own merge, which reads them, and the loads of the step, next."""
        store = self._store
        if store is None:
            super().execute_mm_encoder(scheduled_encoder_inputs)
            return
        if scheduled_encoder_inputs:
            self._encode_items(scheduled_encoder_inputs, store)
        store.show_all()

    def gather_mm_embeddings(self, input_batch: Any, draft_lookahead: int = 0) -> tuple[list[Tensor], Tensor]:
        """Gather rows for a model that drafts tokens."""
        if self._store is not None:
            self._store.show_all()
        gathered: tuple[list[Tensor], Tensor] = super().gather_mm_embeddings(input_batch, draft_lookahead)
        return gathered

    # Parts

    @property
    def _store(self) -> Store | None:
        """The worker's store. None outside of steps, and in a worker without an encoder."""
        return None if self._connector is None else self._connector.store

    def _clear_levels(self) -> None:
        """Clear the deepstack levels of the last step, if its forward pass was the replay of a CUDA graph.

        vLLM's `forward` clears them. A graph that contains the whole pass does not: vLLM replays one for
        decodes and chunks of one token, which may be a token of an item.
        """
        if not self._has_levels:
            return
        num_tokens = getattr(self.model, "deepstack_input_embeds_num_tokens", 0)
        if num_tokens:
            for level in self.model.deepstack_input_embeds:
                level[:num_tokens].zero_()
            self.model.deepstack_input_embeds_num_tokens = 0

    def _encode_items(self, scheduled_encoder_inputs: dict[str, list[int]], store: Store) -> None:
        """Encode items in micro-batches. Those of the last micro-batch have pages, which are not written."""
        if self._batches is None:
            if not self._has_logged:
                self._has_logged = True
                logger.warning(
                    "the encoder has LoRA adapters: vLLM encodes items in its own batches; further steps are "
                    "only counted"
                )
            store.counts.add("stock_encodes")
            super().execute_mm_encoder(scheduled_encoder_inputs)
            return
        identifiers, features = self.encoder_runner.prepare_mm_inputs(scheduled_encoder_inputs)
        if not features:
            return
        num_rows = self._count_rows(scheduled_encoder_inputs)
        rows = self.encoder_cache.encoder_outputs
        last: list[str] = []
        requests = scheduled_encoder_inputs.keys()
        with self.encoder_runner.timed_encoder_operation(requests), store.encoding():
            batches = self._batches.run(features, [num_rows[each] for each in identifiers], self._encode)
            for positions, outputs in batches:
                for identifier in last:
                    store.save(identifier)
                last = [identifiers[position] for position in positions]
                rows.update(zip(last, outputs, strict=True))
        store.reserve(last)

    @traced("encode")
    def _encode(self, modality: str, num_items: int, features: dict[str, Any]) -> Sequence[Tensor]:
        """Run the encoder for one micro-batch: its captured graph, if vLLM has one that fits."""
        graphs = self.encoder_runner.cudagraph_manager
        rows = None
        if graphs is not None and graphs.is_captured() and graphs.supports_modality(modality):
            rows = graphs.execute(features)
        if rows is None:
            rows = self.model.embed_multimodal(**features)
        sanity_check_mm_encoder_outputs(rows, expected_num_items=num_items)
        encoded: Sequence[Tensor] = rows
        return encoded

    def _count_rows(self, scheduled_encoder_inputs: dict[str, list[int]]) -> dict[str, int]:
        """The number of rows of each item, by identifier."""
        features = self.encoder_cache.mm_features
        return {
            features[request][index].identifier: features[request][index].mm_position.get_num_embeds()
            for request, indices in scheduled_encoder_inputs.items()
            for index in indices
        }

    def _find_merge_reason(self, text: TextRows) -> str | None:
        """Why vLLM's merge must write the rows of every step; None: it need not."""
        if self.mm_pruner is not None:
            return "pruning"
        if self.prompt_embeds_state is not None:
            return "prompt_embeds"
        if self.encoder_runner.is_realtime:
            return "realtime"
        if self.vllm_config.parallel_config.prefill_context_parallel_size > 1:
            return "context_parallel"  # a batch has parts of requests
        if text.refuses_foreign_ids and self.model._has_oov_mm_tokens:
            return "vocabulary"
        return None

    def _warm_up(self, text: TextRows) -> None:
        levels = len(self.model.deepstack_input_embeds) if self._has_levels else 0
        warm_up(
            self.device,
            hidden=self.inputs_embeds_size,
            dtype=self.dtype,
            levels=levels,
            level_forms=("list",),
            text_scale=text.scale is not None,
            table=False,
        )
