"""A tiny Qwen3-VL that learns on the CPU, in under a minute, to read the digits on cards."""

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
        # Chats are short: a small base lets a head of random weights tell neighbours from the rest.
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
    patch_size=SIDE // 2,  # so that a row is a digit
)
SEED = 1
LEARNING_RATE = 2e-3
LEARNT = 0.03  # nats per answer


def build_reader() -> Any:
    """The model before it has learnt anything, on the CPU, always the same."""
    model = build_model(SIZE, torch.device("cpu"))
    chance = torch.Generator().manual_seed(SEED)
    # The weights that transformers begins with are so small that images and places hardly show at first.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                is_table = "embed_tokens" in name or "pos_embed" in name
                deviation = 0.5 if is_table else parameter[0].numel() ** -0.5
                parameter.normal_(0, deviation, generator=chance)
    return model


def teach(
    model: Any, cards: Sequence[Card], lessons: Sequence[tuple[int, int]], cards_per_step: int
) -> Iterator[tuple[int, float]]:
    """Train `model` on chats about `cards`; yields the steps done and the loss after each.

    Lessons are (steps, turns): at most so many steps on chats of so many turns, fewer if the loss falls below
    `LEARNT`. The same cards and lessons give the same weights on one machine.
    """
    chance = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=50)
    step = 0
    model.train()
    for most_steps, turns in lessons:
        recent: deque[float] = deque(maxlen=10)
        for _ in range(most_steps):
            chats = [deal(cards, turns, chance, ask_all=True) for _ in range(cards_per_step // turns)]
            loss = _loss(model, chats)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warm_up.step()
            step += 1
            recent.append(loss.item())
            yield step, recent[-1]
            if len(recent) == recent.maxlen and sum(recent) < LEARNT * len(recent):
                break
    model.eval()


def _loss(model: Any, chats: list[Chat]) -> Tensor:
    """How far the model is from the right answers, over all questions of chats of one length."""
    config = model.config
    ids, answered_at = zip(*(chat.ids(config) for chat in chats), strict=True)
    input_ids = torch.tensor(ids)
    pictures = [card.picture for chat in chats for card in chat.cards]
    logits = model(
        input_ids=input_ids,
        mm_token_type_ids=(input_ids == config.image_token_id).int(),
        pixel_values=torch.cat([picture.pixel_values for picture in pictures]),
        image_grid_thw=torch.cat([picture.grid_thw for picture in pictures]),
    ).logits
    at = torch.tensor(answered_at[0])  # the same in all of them
    return nn.functional.cross_entropy(logits[:, at - 1].flatten(0, 1), input_ids[:, at].flatten())
