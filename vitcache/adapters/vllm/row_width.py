"""The width of the rows that a model's encoder returns in vLLM, from the model's configuration."""

from __future__ import annotations

from typing import Any

# The encoder of this model has no deepstack levels, though its vision configuration lists layers.
WITHOUT_LEVELS = ("bailing_moe_v3_vl",)


def default_row_width(model_config: Any) -> int:
    """Return the number of elements of an encoder's row: the width of `inputs_embeds` for each vector.

    Parameters
    ----------
    model_config
        vLLM's `ModelConfig`.
    """
    width = getattr(model_config, "get_inputs_embeds_size", None)
    hidden = width() if width is not None else model_config.hf_text_config.hidden_size
    return int(hidden) * num_packed(model_config.hf_config)


def num_packed(hf_config: Any) -> int:
    """Return how many vectors of the language model's width the encoder packs in a row: at least one.

    In the Qwen3-VL family, Qwen3-Omni's thinker, Cohere Compass and MOSS-Audio, the deepstack levels follow
    the main vector. A row of Granite 4 Vision contains one vector per injected layer, and no main vector.
    """
    kind = _field(hf_config, "model_type")
    if kind in WITHOUT_LEVELS:
        return 1
    if kind == "granite4_vision":
        injected = _length(hf_config, "deepstack_layer_map") + _length(hf_config, "spatial_target_layers")
        return max(1, injected)
    thinker = _field(hf_config, "thinker_config")
    return 1 + max(_num_levels(hf_config), _num_levels(thinker))


def _num_levels(config: Any) -> int:
    """Return the number of deepstack levels of the vision or the audio encoder of `config`."""
    audio = _length(_field(config, "audio_config"), "deepstack_encoder_layer_indexes")
    injected = _field(config, "deepstack_num_inject_layers")
    if injected is not None:
        audio = min(audio, int(injected))
    return max(audio, _length(_field(config, "vision_config"), "deepstack_visual_indexes"))


def _length(config: Any, name: str) -> int:
    return len(_field(config, name) or ())


def _field(config: Any, name: str) -> Any:
    """Return a field of a configuration; None if it lacks the field. Some nested configurations are dicts."""
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)
