"""A tiny Qwen3-VL that learns to read the digits on cards, on the CPU, in less than a minute."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitcache.bench.chats.digits import SIDE, Card, Chat, deal
from vitcache.demo.model import AFTER_BYTES, Size, build_model

HIDDEN = 96
SIZE = Size(
    text={
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "vocab_size": 264,
        "max_position_embeddings": 256,
        # Chats are short. With a small base, heads with random weights can tell neighbours from other tokens.
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [6, 5, 5]},
    },
    vision={
        "depth": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_heads": 3,
        "out_hidden_size": HIDDEN,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    },
    special_tokens=AFTER_BYTES,
    dtype=torch.float32,
    min_pixels=(2 * SIDE) ** 2,
    max_pixels=(2 * SIDE) ** 2,
    patch_size=SIDE // 2,  # 2x2 patches are merged to a row, so a row is a digit
)
SEED = 1
LEARNING_RATE = 2e-3
TARGET_LOSS = 0.03  # nats per answer


def build_reader() -> Any:
    """Return the untrained model, on the CPU, with the same weights in each call."""
    model = build_model(SIZE, torch.device("cpu"))
    generator = torch.Generator().manual_seed(SEED)
    # transformers' initial weights are too small: at first, images and positions hardly change the logits.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                is_table = "embed_tokens" in name or "pos_embed" in name
                deviation = 0.5 if is_table else parameter[0].numel() ** -0.5
                parameter.normal_(0, deviation, generator=generator)
    return model


def teach(
    model: Any, cards: Sequence[Card], lessons: Sequence[tuple[int, int]], cards_per_step: int
) -> Iterator[tuple[int, float]]:
    """Train `model` on chats about `cards`; yields the number of training steps and the loss after each step.

    A lesson is (steps, turns): at most `steps` training steps on chats of `turns` turns. The lesson ends when
    the mean loss of the last ten steps is below `TARGET_LOSS`. On one machine the same cards and lessons give
    the same weights.
    """
    rng = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=50)
    step = 0
    model.train()
    for max_steps, turns in lessons:
        recent: deque[float] = deque(maxlen=10)
        for _ in range(max_steps):
            chats = [deal(cards, turns, rng, ask_all=True) for _ in range(cards_per_step // turns)]
            loss = _loss(model, chats)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warm_up.step()
            step += 1
            recent.append(loss.item())
            yield step, recent[-1]
            if len(recent) == recent.maxlen and sum(recent) < TARGET_LOSS * len(recent):
                break
    model.eval()


def _loss(model: Any, chats: list[Chat]) -> Tensor:
    """Return the mean cross-entropy of the right answers; all chats must have the same length."""
    config = model.config
    ids, answered_at = zip(*(chat.ids(config) for chat in chats), strict=True)
    input_ids = torch.tensor(ids)
    pictures = [card.picture for chat in chats for card in chat.cards]
    logits = model(
        input_ids=input_ids,
        mm_token_type_ids=(input_ids == config.image_token_id).int(),
        pixel_values=torch.cat([picture.pixel_values for picture in pictures]),
        image_grid_thw=torch.cat([picture.features["image_grid_thw"] for picture in pictures]),
    ).logits
    answers = torch.tensor(answered_at[0])  # the same positions in all chats
    return nn.functional.cross_entropy(logits[:, answers - 1].flatten(0, 1), input_ids[:, answers].flatten())
