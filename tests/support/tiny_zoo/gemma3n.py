"""Gemma 3n. Its vision tower is a model of timm, which needs torchvision: here one convolution stands in."""

from __future__ import annotations

from typing import Any

from tiny_family import END, IMAGE, START, Call, random_tensor
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tiny_zoo.configs import AUDIO, tiny_config
from tiny_zoo.gemma4 import pad_to_longest, sound
from tiny_zoo.zoo_model import Medium, ZooModel

SIDE, PATCH, MELS, CLIP_TOKENS = 16, 4, 8, 12
SOFT_TOKENS = (SIDE // PATCH) ** 2
# The last tokens of the vocabulary are those of the vision and the audio embedder.
TEXT = {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
TEXT |= {"laurel_rank": 4, "altup_num_inputs": 2, "sliding_window": 8, "intermediate_size": 48}
TEXT |= {"activation_sparsity_pattern": None}
VISION = {"hidden_size": 24, "vocab_size": 8, "vocab_offset": 112}
SOUND = {"hidden_size": 24, "vocab_size": 8, "vocab_offset": 120, "input_feat_size": MELS}
SOUND |= {"conf_num_hidden_layers": 1, "conf_num_attention_heads": 2, "conf_reduction_factor": 2}
SOUND |= {"conf_attention_chunk_size": 4, "conf_attention_context_left": 5, "sscp_conv_channel_size": [8, 4]}


def picture(seed: int) -> Call:
    return {"pixel_values": random_tensor(seed, 1, 3, SIDE, SIDE)}


def clip(seed: int) -> Call:
    """The arguments of the stock method: its mask is true for padding, unlike that of `forward`."""
    call = sound(seed)
    return call | {"input_features_mask": ~call["input_features_mask"]}


def pad_for_forward(calls: list[Call]) -> Call:
    opposite = [call | {"input_features_mask": ~call["input_features_mask"]} for call in calls]
    return pad_to_longest(opposite)


def stacked(outputs: list[Any]) -> Any:
    """One output with the rows of all outputs, padded to the longest."""
    first, rows = outputs[0], [output.pooler_output[0] for output in outputs]
    first.pooler_output = pad_sequence(rows, batch_first=True)
    masks = [output.audio_mel_mask[0] for output in outputs]
    first.audio_mel_mask = pad_sequence(masks, batch_first=True, padding_value=True)
    return first


def clip_tokens(length: int) -> list[int]:
    """The tokens of one clip: their number is the same for all clips."""
    return [START, *[AUDIO] * CLIP_TOKENS, END]


def build() -> nn.Module:
    import transformers
    from transformers.modeling_outputs import BaseModelOutput

    class StandInConfig(transformers.Gemma3nVisionConfig):
        model_type = "stand_in_vision"

    class StandIn(transformers.PreTrainedModel):
        config_class = StandInConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.conv = nn.Conv2d(3, config.hidden_size, PATCH, PATCH)
            self.post_init()

        def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
            return BaseModelOutput(last_hidden_state=self.conv(pixel_values))

    transformers.AutoModel.register(StandInConfig, StandIn, exist_ok=True)
    config = transformers.Gemma3nConfig(
        text_config=tiny_config(transformers.Gemma3nTextConfig, **TEXT),
        vision_config=StandInConfig(**VISION),
        audio_config=tiny_config(transformers.Gemma3nAudioConfig, **SOUND),
        vision_soft_tokens_per_image=SOFT_TOKENS,
        audio_soft_tokens_per_image=CLIP_TOKENS,
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
    )
    return transformers.Gemma3nForConditionalGeneration(config)


MEDIA = {
    "image": Medium(picture),
    "audio": Medium(clip, pad_for_forward, token=AUDIO, tokens=clip_tokens, joined=stacked),
}
GEMMA3N = [ZooModel("gemma3n", build, MEDIA, note="a convolution stands in for the tower of timm")]
