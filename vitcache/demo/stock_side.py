"""The stock model's side of the demo: no vitcache code, and no attribute or hook set on the model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from vitcache.demo.conversation import Features, Picture, Prompt
from vitcache.demo.model import share_weights
from vitcache.demo.stopwatch import Stopwatch


@dataclass(frozen=True)
class Answer:
    """The results of one side for one prompt.

    Attributes
    ----------
    hidden
        Hidden states ``(1, T, H)``.
    encoded, hits
        Numbers of images that were encoded, and that were found in the cache.
    pixel_bytes
        Bytes that the pixels of the encoded images take in host memory.
    ttft_ms
        Time to the first token, in milliseconds.
    """

    hidden: Tensor
    encoded: int
    hits: int
    pixel_bytes: int
    ttft_ms: float


@dataclass(frozen=True)
class TimedAnswer(Answer):
    """An `Answer` with the time of its vision part, in milliseconds."""

    vision_ms: float


@dataclass(frozen=True)
class AttachedAnswer(Answer):
    """An `Answer` of an attached model.

    Attributes
    ----------
    placed_calls, unplaced_calls
        As in `vitcache.AttachStats`, of this prompt's forward.
    """

    placed_calls: int
    unplaced_calls: dict[str, int]


class StockSide:
    """The model without vitcache: every turn encodes all images of its prompt, in one batch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = model.device

    def answer(self, prompt: Prompt) -> TimedAnswer:
        """Run one turn. The vision part is timed first, in a separate call, because the forward includes it.

        `encoded` and `pixel_bytes` are those of the prompt, because no hook on the model counts them.
        """
        with Stopwatch(self.device) as vision:
            encode(self.model, prompt.features)
        with Stopwatch(self.device) as total:
            inputs = text_inputs(self.model, prompt)
            hidden = prefill(self.model, **inputs, pixel_values=prompt.pixel_values.to(self.device))
        num_images, pixel_bytes = len(prompt.pictures), prompt.pixel_values.nbytes
        return TimedAnswer(hidden, num_images, 0, pixel_bytes, total.ms, vision.ms)

    def answer_one_at_a_time(self, prompt: Prompt) -> Tensor:
        """Return the hidden states with each image encoded alone: the reference that a cache must reproduce.

        If the forward takes no encoder outputs, `get_image_features` is replaced on a temporary copy of the
        model that shares its weights.
        """
        features = self._encode_one_at_a_time(prompt)
        inputs = text_inputs(self.model, prompt)
        if takes_encoder_outputs(self.model):
            return prefill(self.model, **inputs, mm_encoder_outputs={"image": features})
        twin = share_weights(self.model)
        twin.model.get_image_features = lambda *args, **kwargs: features
        return prefill(twin, **inputs, pixel_values=prompt.pixel_values.to(self.device))

    def _encode_one_at_a_time(self, prompt: Prompt) -> Any:
        """Return the features of all images as ``get_image_features`` would, from one call per image."""
        outputs = [encode_alone(self.model, picture) for picture in prompt.pictures]
        features = outputs[0]
        features.pooler_output = _join([output.pooler_output for output in outputs])
        if getattr(features, "deepstack_features", None) is not None:
            levels = zip(*(output.deepstack_features for output in outputs), strict=True)
            features.deepstack_features = [_join(level) for level in levels]
        return features


def takes_encoder_outputs(model: Any) -> bool:
    """Whether the forward accepts computed image features (transformers 5.18 and later)."""
    return "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters


def _join(parts: Sequence[Any]) -> Any:
    """Return the features of all images in the container of the first: a tensor, or a tuple of them."""
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else tuple(chain.from_iterable(parts))


def encode_alone(model: Any, picture: Picture) -> Any:
    """Return the stock model's features of one image, after copying its pixels to the model's device."""
    return encode(model, picture.features)


def encode(model: Any, features: Features) -> Any:
    """Return the output of ``get_image_features`` for features on any device."""
    return model.get_image_features(**{name: value.to(model.device) for name, value in features.items()})


def prefill(model: Any, **inputs: Any) -> Tensor:
    """Run the whole prompt and pick the first token; return the hidden states of all positions.

    The head runs on the last position only, as in ``generate``. The host waits for the token.
    """
    hidden: Tensor = model.model(**inputs).last_hidden_state
    pick_token(model, hidden)
    return hidden


def pick_token(model: Any, hidden: Tensor) -> int:
    """Return the id of the most likely next token, on the host."""
    return int(model.lm_head(hidden[:, -1:]).argmax())


def text_inputs(model: Any, prompt: Prompt) -> dict[str, Tensor]:
    """Return all arguments of a stock forward except the pixels, on the model's device."""
    inputs = {"input_ids": prompt.input_ids, **token_type_inputs(model, prompt), **prompt.sizes}
    return {name: value.to(model.device) for name, value in inputs.items()}


def token_type_inputs(model: Any, prompt: Prompt) -> dict[str, Tensor]:
    """Return the argument of the forward that marks the image tokens, if it has one, in host memory."""
    known = inspect.signature(model.model.forward).parameters
    return {name: prompt.token_types for name in ("mm_token_type_ids", "token_type_ids") if name in known}
