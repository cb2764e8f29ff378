"""`refusal_of`: the reason why a model cannot be attached."""

from __future__ import annotations

from typing import Any

_CROSS_ATTENTION = (
    "its language model reads images by cross-attention, so that no rows are placed among tokens"
)
_IMAGE_ENCODER = "its images are the input of an encoder, so that no rows are placed among tokens"
_OWN_CALL = "its forward calls the vision model itself, and no get_image_features"
_OF_THE_TEXT = "its image features are rows of the text embedding: attach does not notice when they change"
_OF_THE_PROMPT = "its features depend on the text of the prompt"

REFUSED: dict[str, str] = {
    "blip": _CROSS_ATTENTION,
    "blip-2": "its forward returns the outputs of its vision model and its Q-Former, which attach leaves out",
    "chameleon": _OF_THE_TEXT,
    "emu3": _OF_THE_TEXT,
    "evolla": "its inputs are proteins, not images",
    "git": _OWN_CALL,
    "glm_image": "its forward makes token ids of the image features, which are maps and not rows",
    "idefics": _CROSS_ATTENTION,
    "inkling_mm_model": "a call of get_image_features does not tell which patches belong to one image",
    "instructblip": _OF_THE_PROMPT,
    "instructblipvideo": _OF_THE_PROMPT,
    "kosmos-2": _OWN_CALL,
    "kosmos-2.5": _OWN_CALL,
    "kyutai_speech_to_text": "its forward reads codes of the audio, and no features of a tower",
    "mistral4": "it is a language model without a vision tower",
    "mllama": _CROSS_ATTENTION,
    "moss_transcribe_diarize": "a call of get_audio_features has a mask per clip and features per 30 seconds",
    "musicflamingo": _OF_THE_PROMPT,
    "nemo_speechlm": "its generate reads outputs of get_audio_features that attach leaves out",
    "phi4_multimodal": "its forward calls its vision and audio towers itself, and no get_image_features",
    "pi0": "it generates the actions of a robot, not text",
    "pix2struct": _IMAGE_ENCODER,
    "pp_formulanet": _IMAGE_ENCODER,
    "qwen2_audio": "its forward calls the audio tower itself, and no get_audio_features",
    "udop": _IMAGE_ENCODER,
    "vibevoice_asr": "its get_audio_features adds random noise",
    "vision-encoder-decoder": _IMAGE_ENCODER,
    "voxtral_realtime": "its audio encoder continues from the audio of the call before",
}
"""The reasons, by `config.model_type`."""


def refusal_of(config: Any) -> str | None:
    """Return the reason why no model with this config can be attached, or None."""
    if getattr(config, "density_router_hidden_size", None) is not None:  # of Granite Docling
        return "its density router returns a value for all tiles of a prompt"
    return REFUSED.get(getattr(config, "model_type", ""))
