"""The families whose images and videos are patches with a grid: Qwen2-VL to Qwen3.5, and GLM-4V.

A clip is the output that the family's processor would return for one video.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from tiny_family import (
    END,
    HEADS,
    HIDDEN,
    IMAGE,
    PADS,
    START,
    TEXT,
    VIDEO,
    Call,
    TinyFamily,
    cat,
    one_of,
    random_tensor,
    stock_method,
)
from torch import Tensor, nn

VIDEO_START, VIDEO_END = 94, 95  # of GLM-4V
PATCH = 3 * 2 * 4 * 4  # channels, temporal patch size, patch size twice

Token = tuple[int, int]
"""The id of a token and its type: 0 is text, 1 an image, 2 a video."""


@dataclass(frozen=True, kw_only=True)
class GridFamily(TinyFamily):
    """A family whose images and videos are patches with a grid.

    `video_tokens` returns the tokens of one video, given its grid. `has_seconds`: the positions of a video's
    tokens depend on `second_per_grid_ts`. `patch`: elements of a patch. `is_glm`: the tokens of videos have
    the id of those of images.
    """

    video_tokens: Callable[[list[int]], list[Token]]
    has_seconds: bool = False
    patch: int = PATCH
    is_glm: bool = False

    def clip(self, seed: int) -> Call:
        grid = one_of(seed, (2, 4, 4), (3, 2, 4), (1, 4, 6))
        clip = {
            "pixel_values_videos": random_tensor(1000 + seed, prod(grid), self.patch),
            "video_grid_thw": torch.tensor([grid]),
        }
        if self.has_seconds:
            clip["second_per_grid_ts"] = torch.tensor([(0.5, 2.0, 1.3)[seed % 3]])
        return clip

    def mixed_prompt(self, *media: tuple[str, int]) -> Call:
        """The arguments of `forward` for a chat with these images and videos, in order.

        Each is ``("image", seed)`` or ``("video", seed)``.
        """
        tokens: list[Token] = [(1, 0)]
        pictures, clips = [], []
        for number, (modality, seed) in enumerate(media):
            tokens.append((2 + number, 0))
            if modality == "image":
                pictures.append(self.picture(seed))
                tokens += _run(IMAGE, 1, pictures[-1]["image_grid_thw"][0].tolist())
            else:
                clips.append(self.clip(seed))
                tokens += self.video_tokens(clips[-1]["video_grid_thw"][0].tolist())
            tokens += [(40, 0), (41, 0)]
        ids, types = torch.tensor([*tokens, (42, 0)]).T[:, None].contiguous()
        prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types.int()}
        return prompt | (self.join(pictures) if pictures else {}) | (cat(clips) if clips else {})

    @torch.no_grad()
    def stock_logits(self, model: nn.Module, prompt: Call) -> Tensor:
        """The logits of the stock forward.

        The stock forward of GLM cannot run images and videos in one call, because both have the same token
        id. There the rows of its stock methods and the stock positions are the input of its language model.
        """
        if not self.is_glm or not {"pixel_values", "pixel_values_videos"} <= set(prompt):
            return type(model).forward(model, **prompt).logits
        base: Any = model.base_model
        embeds, types = base.get_input_embeddings()(prompt["input_ids"]), prompt["mm_token_type_ids"]
        for kind, modality, (pixels, grids) in (
            (1, "image", ("pixel_values", "image_grid_thw")),
            (2, "video", ("pixel_values_videos", "video_grid_thw")),
        ):
            output = stock_method(model, modality)(prompt[pixels], prompt[grids])
            embeds[types == kind] = torch.cat(output.pooler_output)
        names = "input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask"
        positions, _ = base.get_rope_index(**{name: prompt[name] for name in names})
        return type(model).forward(model, inputs_embeds=embeds, position_ids=positions).logits


def _picture(seed: int, patch: int = PATCH) -> Call:
    grid = one_of(seed, (1, 4, 4), (1, 4, 6), (1, 2, 4))
    return {"pixel_values": random_tensor(seed, prod(grid), patch), "image_grid_thw": torch.tensor([grid])}


def _part(call: Call) -> list[Call]:
    grids = call["image_grid_thw"]
    pixels = call["pixel_values"].split([prod(grid) for grid in grids.tolist()])
    shared = {k: v for k, v in call.items() if k not in ("pixel_values", "image_grid_thw")}
    return [
        {"pixel_values": patches, "image_grid_thw": grid[None], **shared}
        for patches, grid in zip(pixels, grids, strict=True)
    ]


def grid_token_types(input_ids: Tensor) -> Call:
    """The types of tokens. Image tokens between VIDEO_START and VIDEO_END are of a video, as in GLM-4V."""
    is_open = ((input_ids == VIDEO_START).int() - (input_ids == VIDEO_END).int()).cumsum(-1).int()
    images, videos = (input_ids == IMAGE).int(), (input_ids == VIDEO).int()
    return {"mm_token_type_ids": images * (1 + is_open) + 2 * videos}


# The tokens of an image and of a video.


def _run(token_id: int, kind: int, grid: list[int]) -> list[Token]:
    """One run for a whole item."""
    return [(START, 0), *[(token_id, kind)] * (prod(grid) // 4), (END, 0)]


def _one_run(grid: list[int]) -> list[Token]:
    return _run(VIDEO, 2, grid)


def _run_per_frame(grid: list[int]) -> list[Token]:
    """Two tokens of a timestamp before each frame."""
    frame = _run(VIDEO, 2, [1, *grid[1:]])
    return [token for number in range(grid[0]) for token in ((50 + number, 0), (60, 0), *frame)]


def _image_tokens_per_frame(grid: list[int]) -> list[Token]:
    """One token of a timestamp behind each frame; the frames have the token id of images."""
    frame = _run(IMAGE, 2, [1, *grid[1:]])
    frames = [token for number in range(grid[0]) for token in (*frame, (50 + number, 0))]
    return [(VIDEO_START, 0), *frames, (VIDEO_END, 0)]


# The models.

VISION = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
VISION |= {"out_hidden_size": HIDDEN}
POSITIONS = {"num_position_embeddings": 64}
DEEPSTACK = {"depth": 3, "deepstack_visual_indexes": [0, 1]}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
INTERLEAVED = ROPE | {"mrope_interleaved": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
LINEAR |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
LINEAR |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
# The norm behind linear attention divides by values that may be near 0 in so narrow a head. With the usual
# epsilon, the rounding of float32 alone moves the logits by 7e-5 of the largest, and with this one by 2e-6.
LINEAR |= {"rms_norm_eps": 1e-2}
LINEAR |= {"rope_parameters": INTERLEAVED | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
TOKENS |= {"vision_start_token_id": START, "vision_end_token_id": END}
GLM_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
GLM_TOKENS |= {"image_start_token_id": START, "image_end_token_id": END}
GLM_TOKENS |= {"video_start_token_id": VIDEO_START, "video_end_token_id": VIDEO_END}


def _model(
    prefix: str, vision: Call, text: Call, tokens: Call = TOKENS, config_prefix: str | None = None
) -> Callable[[], nn.Module]:
    """Return a function that makes a model of the classes of transformers with this prefix."""

    def build() -> nn.Module:
        import transformers

        sizes = deepcopy({**TEXT, **HEADS, **PADS, **text})  # a config may change its rotary parameters
        config = getattr(transformers, f"{config_prefix or prefix}Config")(
            text_config=sizes, vision_config={**VISION, **vision}, **tokens
        )
        return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)

    return build


def _family(
    name: str,
    build: Callable[[], nn.Module],
    video_tokens: Callable[[list[int]], list[Token]],
    *,
    row_width: int = HIDDEN,
    patch: int = PATCH,
    **options: Any,
) -> GridFamily:
    return GridFamily(
        name,
        build,
        functools.partial(_picture, patch=patch),
        cat,
        _part,
        "visual",
        row_width,
        grid_token_types,
        video_tokens=video_tokens,
        patch=patch,
        **options,
    )


QWEN2_VISION = {"hidden_size": HIDDEN, "embed_dim": 24, "mlp_ratio": 2}
QWEN2_5_VISION = {"window_size": 16, "fullatt_block_indexes": [1]}
GLM_VISION = {"hidden_size": HIDDEN, "image_size": 16}

GLM_EXPERTS: Call = {"rope_parameters": ROPE | {"mrope_section": [1, 2, 1]}}
GLM_EXPERTS |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
STILL = {"num_hidden_layers": 2, "num_attention_heads": 2}
COMPASS = {"layer_types": ["full_attention"] * 3, "sliding_window": 16}
COMPASS |= {"rope_parameters": {"full_attention": INTERLEAVED}}
QWEN4 = {"hc_count": 2, "hc_lowrank": 8, "shared_expert_intermediate_size": 16}
QWEN4 |= {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
QWEN4 |= {"indexer_budget": 64, "indexer_compress_ratio": 4}


def _glm(name: str, prefix: str, config_prefix: str | None = None, **text: Any) -> GridFamily:
    build = _model(prefix, GLM_VISION, {"rope_parameters": ROPE} | text, GLM_TOKENS, config_prefix)
    return _family(name, build, _image_tokens_per_frame, is_glm=True)


GRID_FAMILIES = {
    family.name: family
    for family in (
        _family("qwen2_vl", _model("Qwen2VL", QWEN2_VISION, {"rope_parameters": ROPE}), _one_run),
        _family(
            "qwen2_5_vl",
            _model("Qwen2_5_VL", QWEN2_5_VISION, {"rope_parameters": ROPE}),
            _one_run,
            has_seconds=True,
        ),
        _family(
            "qwen3_vl",
            _model("Qwen3VL", POSITIONS | DEEPSTACK, {"rope_parameters": INTERLEAVED}),
            _run_per_frame,
            row_width=3 * HIDDEN,
        ),
        _family(
            "qwen3_vl_moe",
            _model("Qwen3VLMoe", POSITIONS | DEEPSTACK, {"rope_parameters": INTERLEAVED, **EXPERTS}),
            _run_per_frame,
            row_width=3 * HIDDEN,
        ),
        _family("qwen3_5", _model("Qwen3_5", POSITIONS, LINEAR), _run_per_frame),
        _family(
            "qwen3_5_moe",
            _model("Qwen3_5Moe", POSITIONS, LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16}),
            _run_per_frame,
        ),
        _family(
            "cosmos3_omni",
            _model("Cosmos3Omni", POSITIONS | DEEPSTACK, {"rope_parameters": INTERLEAVED}),
            _run_per_frame,
            row_width=3 * HIDDEN,
        ),
        _family(
            "cosmos3_edge",
            _model("Cosmos3Edge", STILL, {"rope_parameters": ROPE}, TOKENS | {"projector_hidden_size": 48}),
            _run_per_frame,
            patch=PATCH // 2,
        ),
        _family(
            "cohere_compass",
            _model("CohereCompass", POSITIONS | DEEPSTACK, COMPASS),
            _run_per_frame,
            row_width=3 * HIDDEN,
        ),
        _family("qwen4_exp", _model("Qwen4Exp", POSITIONS, LINEAR | EXPERTS | QWEN4), _run_per_frame),
        _glm("glm4v", "Glm4v"),
        _glm("glm4v_moe", "Glm4vMoe", **GLM_EXPERTS),
        _glm("glm46v", "Glm46V"),
        _glm("glmga", "Glm46V", "Glmga"),
        _glm("glm_ocr", "GlmOcr"),
    )
}
