"""How engines build ``inputs_embeds``: each engine's computation, re-expressed in torch, with its source.

Every contender takes a `Scene` and returns ``(inputs_embeds, deepstack or None)``. The scene prepares the
masks and indices that an engine builds on the host before its forward pass, so they are not timed.
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
IMAGE_TOKEN_OFFSET = 1  # the placeholder id is the last id of the vocabulary


class Scene:
    """The inputs of one case on one device: random rows, and a prompt of random text and placeholders."""

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
        """Allocate a destination for the deepstack levels with `fill`; None if the case has no levels."""
        shape = (self.case.levels, self.case.num_tokens, self.case.hidden)
        return fill(shape, device=self.device, dtype=self.dtype) if self.case.levels else None


def vitcache_list(scene: Scene) -> Built:
    """Run vitcache on one tensor per image."""
    deepstack = scene.deepstack()
    args = (scene.input_ids, scene.weight, scene.embeddings, scene.spans)
    return vitcache.embed_tokens(*args, deepstack=deepstack), deepstack


def vitcache_packed(scene: Scene) -> Built:
    """Run vitcache on one packed tensor, with the spans as an int64 array."""
    deepstack = scene.deepstack()
    args = (scene.input_ids, scene.weight, scene.packed, scene.packed_spans)
    return vitcache.embed_tokens(*args, deepstack=deepstack), deepstack


def slice_loop(scene: Scene) -> Built:
    """Look up the text rows, then copy the rows of each image: plain torch without a cat or a mask."""
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
    """Look up the text rows, then write all rows by one ``index_copy_``; the scene prepares the indices."""
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
    """transformers 5.23.0, modeling_qwen3_vl.py:1178 and five more files: cat, mask, masked_scatter.

    The masked_scatter is out of place. The number of placeholders is compared with the number of rows on the
    host, as in ``get_placeholder_mask``. transformers adds the deepstack levels inside the decoder layers;
    this contender leaves them out.
    """
    out = embedding(scene.input_ids, scene.weight)
    rows = torch.cat(scene.embeddings)
    mask = scene.input_ids == scene.image_token
    num_placeholders = int(mask.sum())
    if num_placeholders != len(rows):
        raise ValueError(f"expected {len(rows)} placeholder tokens, one per row, got {num_placeholders}")
    return out.masked_scatter(mask.unsqueeze(-1).expand_as(out), rows), None


def vllm_merge(scene: Scene) -> Built:
    """vLLM 0.33.0, model_executor/models/utils.py:717: cat, then index assignment with a CPU mask.

    With deepstack (qwen3_vl.py:3083), vLLM splits the rows, merges the levels into zeros of ``(T, L * H)``,
    permutes them to ``(L, T, H)``, and copies them to the buffer that the layers read (qwen3_vl.py:2104).
    Before the text look-up, vLLM sets the ids of placeholders to 0, as they may be outside of the vocabulary.
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

    Two concatenations; a mask by ``searchsorted`` among the placeholder ids; clamped ids; row indices by a
    cumulative sum of the mask; ``index_copy_``. The index array has one extra element: all text tokens write
    their position to it, and it is cut off.
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
    8bc4e0967b9d (`fuse_input_embeds` with indices prepared on the host): cat, two index_puts.
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
