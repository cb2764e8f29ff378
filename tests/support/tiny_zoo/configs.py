"""`tiny_config`: the default configuration of a model class with every size made small."""

from __future__ import annotations

from typing import Any

from tiny_family import END, HIDDEN, IMAGE, START, VIDEO

AUDIO, VIDEO_START, VIDEO_END = 89, 94, 95
EXPERTS = 4
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": HIDDEN,
    "out_hidden_size": HIDDEN,
    "intermediate_size": 48,
    "depth": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "patch_size": 4,
    "num_position_embeddings": 64,
    "max_position_embeddings": 512,
    "sliding_window": None,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VIDEO,
    "video_token_index": VIDEO,
    "audio_token_id": AUDIO,
    "audio_token_index": AUDIO,
    "boi_token_id": START,
    "eoi_token_id": END,
    "boi_token_index": START,
    "eoi_token_index": END,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": VIDEO_START,
    "video_end_token_id": VIDEO_END,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
"""Sizes of attention with latent keys and values."""

# One value per layer of the default sizes, or names of a file: the class computes or needs none of these.
DERIVED = {"layer_types", "mlp_layer_types", "no_rope_layers", "moe_layers", "per_layer_config"}
DERIVED |= {"id2label", "label2id", "transformers_version", "architectures", "_name_or_path"}


def tiny_config(config_class: type, **changes: Any) -> Any:
    """Return a config of this class with small sizes.

    `changes` replace its values. A dict is merged into the dict of that name, such as `vision_config`.
    """
    return config_class(**_merge(_shrink(config_class().to_dict(), is_root=True), changes))


def _shrink(values: dict[str, Any], *, is_root: bool = False) -> dict[str, Any]:
    small = {}
    for name, value in values.items():
        if name in DERIVED or (is_root and name == "model_type"):
            continue
        if isinstance(value, dict) and "config" in name:
            small[name] = _shrink(value)
        else:
            small[name] = SIZES.get(name, value)
    return small


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        known = merged.get(name)
        is_part = isinstance(known, dict) and isinstance(change, dict) and "config" in name
        merged[name] = _merge(known, change) if is_part else change
    return merged
