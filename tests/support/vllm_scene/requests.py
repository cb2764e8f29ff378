"""Requests and settings as vLLM's scheduler has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from vitcache.adapters.vllm.settings import Settings


def make_settings(
    device_pages: int, host_pages: int, *, page_rows: int = 4, row_width: int = 8, **options: Any
) -> Settings:
    """Return settings of tiers with these numbers of pages, and further options."""
    page_bytes = page_rows * row_width * 4
    sizes = {
        "device_bytes": device_pages * page_bytes,
        "host_bytes": host_pages * page_bytes,
        "page_rows": page_rows,
        "row_width": row_width,
    }
    model = SimpleNamespace(
        model="m",
        revision=None,
        dtype=torch.float32,
        hf_text_config=SimpleNamespace(hidden_size=row_width),
        hf_config=SimpleNamespace(),
    )
    transfer = SimpleNamespace(
        ec_connector="VitCacheConnector", ec_role="ec_both", ec_connector_extra_config={**sizes, **options}
    )
    return Settings.from_config(SimpleNamespace(ec_transfer_config=transfer, model_config=model))


@dataclass
class Feature:
    """One item of a request; its tokens are its rows."""

    identifier: str
    num_rows: int
    offset: int
    modality: str = "image"

    @property
    def mm_position(self) -> Any:
        """Where its tokens are."""
        return SimpleNamespace(offset=self.offset, length=self.num_rows, is_embed=None)

    @property
    def end(self) -> int:
        """Position behind its last token."""
        return self.offset + self.num_rows


@dataclass
class Request:
    """A request: items, one text token before each, and `tail` text tokens behind them."""

    request_id: str
    mm_features: list[Feature]
    cache_salt: str | None = None
    num_computed_tokens: int = 0
    num_tokens: int = field(init=False)
    steps_in_flight: int = 0

    def __post_init__(self) -> None:
        self.num_tokens = self.mm_features[-1].end + 3

    def get_num_encoder_embeds(self, index: int) -> int:
        """Return the number of rows of an item."""
        return self.mm_features[index].num_rows


def make_request(request_id: str, items: list[tuple[str, int]], salt: str | None = None) -> Request:
    """Return a request with items of (identifier, number of rows), one text token before each."""
    features, position = [], 0
    for identifier, num_rows in items:
        position += 1
        features.append(Feature(identifier, num_rows, position))
        position += num_rows
    return Request(request_id, features, salt)
