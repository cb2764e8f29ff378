"""How engines build ``inputs_embeds``, re-expressed in torch from what they compute, each with its source.

Every contender takes a `Scene` and returns ``(inputs_embeds, deepstack or None)``. What an engine knows
before the forward pass (masks and indices that it builds on the host) is prepared in the scene, as the engine
would have it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

import vitcache
from vitcache.bench.harness.registry import PlacementCase

Built = tuple[Tensor, Tensor | None]
IMAGE_TOKEN_OFFSET = 1  # the placeholder id is the last of the vocabulary


class Scene:
    """The inputs of one case on one device: random rows and text, placeholders in between."""

    def __init__(
        self, case: PlacementCase, device: torch.device, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.case, self.device, self.dtype = case, device, dtype
        self.width = case.hidden * (1 + case.levels)
        self.image_token = case.vocabulary - IMAGE_TOKEN_OFFSET
        host_ids = torch.randint(0, self.image_token, (case.num_tokens,))
        for start in case.starts:
            host_ids[start : start + case.rows] = self.image_token
        self.host_mask = host_ids == self.image_token
        self.input_ids = host_ids.to(device)
        self.weight = torch.randn(case.vocabulary, case.hidden, device=device, dtype=dtype)
        self.packed = torch.randn(case.items * case.rows, self.width, device=device, dtype=dtype)
        self.embeddings = list(self.packed.clone().split(case.rows))
        self.spans = [vitcache.Span(start, case.rows) for start in case.starts]
        self.packed_spans = np.array(
            [(s, case.rows, i * case.rows) for i, s in enumerate(case.starts)], np.int64
        )
        self.text_index = (~self.host_mask).nonzero().squeeze(1).to(device)
        self.image_index = self.host_mask.nonzero().squeeze(1).to(device)

    def deepstack(self, fill: Callable[..., Tensor] = torch.empty) -> Tensor | None:
        """A destination for the deepstack levels, made by `fill`, or None."""
        shape = (self.case.levels, self.case.num_tokens, self.case.hidden)
        return fill(shape, device=self.device, dtype=self.dtype) if self.case.levels else None


def vitcache_list(scene: Scene) -> Built:
    """vitcache, one tensor per image."""
    deepstack = scene.deepstack()
    args = (scene.input_ids, scene.weight, scene.embeddings, scene.spans)
    return vitcache.embed_tokens(*args, deepstack=deepstack), deepstack


def vitcache_packed(scene: Scene) -> Built:
    """vitcache, one packed tensor and spans as an array."""
    deepstack = scene.deepstack()
    args = (scene.input_ids, scene.weight, scene.packed, scene.packed_spans)
    return vitcache.embed_tokens(*args, deepstack=deepstack), deepstack


def slice_loop(scene: Scene) -> Built:
    """Text look-up, then one copy per image: the least that plain torch can do."""
    out, deepstack, hidden = (
        embedding(scene.input_ids, scene.weight),
        scene.deepstack(torch.zeros),
        scene.case.hidden,
    )
    for span, rows in zip(scene.spans, scene.embeddings, strict=True):
        out[span.start : span.stop].copy_(rows[:, :hidden])
        for level in range(scene.case.levels):
            deepstack[level, span.start : span.stop].copy_(
                rows[:, hidden * (level + 1) : hidden * (level + 2)]
            )
    return out, deepstack


def index_copy(scene: Scene) -> Built:
    """Text look-up, then one ``index_copy_`` of all rows at indices known before."""
    out, deepstack, hidden = (
        embedding(scene.input_ids, scene.weight),
        scene.deepstack(torch.zeros),
        scene.case.hidden,
    )
    rows = torch.cat(scene.embeddings)
    out.index_copy_(0, scene.image_index, rows[:, :hidden])
    for level in range(scene.case.levels):
        deepstack[level].index_copy_(
            0, scene.image_index, rows[:, hidden * (level + 1) : hidden * (level + 2)]
        )
    return out, deepstack


def transformers_merge(scene: Scene) -> Built:
    """transformers 5.23.0, modeling_qwen3_vl.py:1178 and five more: cat, mask, out-of-place masked_scatter.

    The placeholder count is checked against the rows on the host, as ``get_placeholder_mask`` does. Its
    deepstack happens inside the layers and is left out.
    """
    out = embedding(scene.input_ids, scene.weight)
    rows = torch.cat(scene.embeddings)
    mask = scene.input_ids == scene.image_token
    if int(mask.sum()) != len(rows):
        raise ValueError("placeholder tokens and rows differ")
    return out.masked_scatter(mask.unsqueeze(-1).expand_as(out), rows), None


def vllm_merge(scene: Scene) -> Built:
    """vLLM 0.33.0, model_executor/models/utils.py:717: cat, then index assignment with a CPU mask.

    With deepstack (qwen3_vl.py:3083) the rows are split, the levels merged into zeros of ``(T, L * H)``,
    permuted to ``(L, T, H)``, and copied to where the layers read them (qwen3_vl.py:2104). Ids out of the
    vocabulary are zeroed before.
    """
    hidden, levels = scene.case.hidden, scene.case.levels
    out = embedding(
        scene.input_ids.masked_fill(scene.host_mask.to(scene.device, non_blocking=True), 0), scene.weight
    )
    rows = torch.cat(scene.embeddings)
    if not levels:
        out[scene.host_mask] = rows
        return out, None
    main, multiscale = rows.split([hidden, hidden * levels], dim=-1)
    merged = out.new_zeros(len(out), hidden * levels)
    merged[scene.host_mask] = torch.cat([multiscale])
    out[scene.host_mask] = torch.cat([main])
    return out, merged.view(len(out), levels, hidden).permute(1, 0, 2).contiguous()


def sglang_merge(scene: Scene) -> Built:
    """SGLang 0.5.23, srt/managers/mm_utils.py:429 and :447, mask of srt/managers/mm_schedule.py:655.

    Two concatenations, a mask by a sorted look-up of the placeholders, clamped ids, row indices by a running
    sum over the mask, ``index_copy_`` into a destination with one poison row for what does not belong.
    """
    hidden, levels = scene.case.hidden, scene.case.levels
    rows = torch.cat([torch.cat(scene.embeddings)])
    pinned = scene.device.type == "cuda"
    placeholders = torch.tensor([scene.image_token], pin_memory=pinned).to(scene.device, non_blocking=True)
    nearest = torch.searchsorted(placeholders, scene.input_ids).clamp_(max=len(placeholders) - 1)
    mask = placeholders[nearest] == scene.input_ids
    out = embedding(scene.input_ids.clamp(0, scene.case.vocabulary - 1), scene.weight)
    index = torch.full((len(rows) + 1,), len(out), dtype=torch.int64, device=scene.device)
    order = torch.where(mask, mask.cumsum(0) - 1, len(rows))
    index.scatter_(0, order, torch.arange(len(out), device=scene.device))
    out.index_copy_(0, index[:-1], rows[:, :hidden])
    if not levels:
        return out, None
    merged = out.new_zeros(len(out), hidden * levels)
    merged.index_copy_(0, index[:-1], rows[:, hidden:])
    return out, merged.view(len(out), levels, hidden).permute(1, 0, 2)


def tensorrt_llm_merge(scene: Scene) -> Built:
    """TensorRT-LLM 1.4.0rc1, _torch/models/modeling_multimodal_utils.py:286 as of its commit
    8bc4e0967b9d (`fuse_input_embeds` with indices known before): cat, two index_puts.
    """
    rows = torch.cat(scene.embeddings)
    out = scene.weight.new_empty(scene.case.num_tokens, scene.case.hidden)
    out[scene.text_index] = embedding(scene.input_ids[scene.text_index], scene.weight)
    out[scene.image_index] = rows
    return out, None


CONTENDERS: dict[str, Callable[[Scene], Built]] = {
    "vitcache": vitcache_list,
    "vitcache-packed": vitcache_packed,
    "slice-loop": slice_loop,
    "index-copy": index_copy,
    "vllm": vllm_merge,
    "sglang": sglang_merge,
    "tensorrt-llm": tensorrt_llm_merge,
    "transformers": transformers_merge,
}
WITHOUT_DEEPSTACK = {"tensorrt-llm", "transformers"}
