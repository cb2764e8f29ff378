"""The stock model's side of the demo: nothing here calls vitcache or sets or hooks anything on the model."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from vitcache.demo.conversation import Picture, Prompt
from vitcache.demo.model import share_weights
from vitcache.demo.stopwatch import Stopwatch


@dataclass(frozen=True)
class Answer:
    """What one side made of a prompt, and the time to the first token.

    Hidden states ``(1, T, H)``, images encoded and hit, bytes of host pixels that the tower was given.
    """

    hidden: Tensor
    encoded: int
    hits: int
    pixel_bytes: int
    ttft_ms: float


@dataclass(frozen=True)
class TimedAnswer(Answer):
    """The same with its vision part: how long it took."""

    vision_ms: float


class StockSide:
    """A model as its users have it today: every turn encodes all the images of its prompt, in one batch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = model.device

    def answer(self, prompt: Prompt) -> TimedAnswer:
        """Run one turn. The tower runs inside the forward, so it is timed before, in a call of its own.

        Images and bytes are those that the model is handed: nothing on it counts what it does with them.
        """
        with Stopwatch(self.device) as vision:
            pixel_values, grid_thw = prompt.pixel_values.to(self.device), prompt.grid_thw.to(self.device)
            self.model.get_image_features(pixel_values, grid_thw)
        with Stopwatch(self.device) as total:
            inputs = text_inputs(prompt, self.device)
            hidden = prefill(self.model, **inputs, pixel_values=prompt.pixel_values.to(self.device))
        handed = len(prompt.grid_thw), prompt.pixel_values.nbytes
        return TimedAnswer(hidden, handed[0], 0, handed[1], total.ms, vision.ms)

    def answer_one_at_a_time(self, prompt: Prompt) -> Tensor:
        """Hidden states of the same turn with each image encoded alone, which a cache must reproduce.

        A forward that takes no encoder outputs has to meet them in place of its own encode. That is arranged
        on another model object, thrown away afterwards, that reads the same weights.
        """
        features = self._encode_one_at_a_time(prompt)
        inputs = text_inputs(prompt, self.device)
        if takes_encoder_outputs(self.model):
            return prefill(self.model, **inputs, mm_encoder_outputs={"image": features})
        double = share_weights(self.model)
        double.model.get_image_features = lambda *args, **kwargs: features
        return prefill(double, **inputs, pixel_values=prompt.pixel_values.to(self.device))

    def _encode_one_at_a_time(self, prompt: Prompt) -> Any:
        """The features of all images as ``get_image_features`` has them, each image from its own call."""
        alone = [encode_alone(self.model, picture) for picture in prompt.pictures]
        features = alone[0]
        features.pooler_output = tuple(chain.from_iterable(one.pooler_output for one in alone))
        features.deepstack_features = [
            torch.cat(level) if isinstance(level[0], Tensor) else tuple(chain.from_iterable(level))
            for level in zip(*(one.deepstack_features for one in alone), strict=True)
        ]
        return features


def takes_encoder_outputs(model: Any) -> bool:
    """Whether the forward accepts finished image features, as it does since transformers 5.18."""
    return "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters


def encode_alone(model: Any, picture: Picture) -> Any:
    """The stock model's features of one image, its pixels moved to the model for it."""
    return model.get_image_features(picture.pixel_values.to(model.device), picture.grid_thw.to(model.device))


def prefill(model: Any, **inputs: Any) -> Tensor:
    """Run the whole prompt and pick the first token; returns the hidden states of all positions.

    The head runs on the last position only, as ``generate`` does, and the token reaches the host.
    """
    hidden: Tensor = model.model(**inputs).last_hidden_state
    pick_token(model, hidden)
    return hidden


def pick_token(model: Any, hidden: Tensor) -> int:
    """The id of the most likely next token, on the host."""
    return int(model.lm_head(hidden[:, -1:]).argmax())


def text_inputs(prompt: Prompt, device: torch.device) -> dict[str, Tensor]:
    """All arguments of a stock forward but the pixels, on `device`."""
    return {
        "input_ids": prompt.input_ids.to(device),
        "mm_token_type_ids": prompt.token_types.to(device),
        "image_grid_thw": prompt.grid_thw.to(device),
    }
