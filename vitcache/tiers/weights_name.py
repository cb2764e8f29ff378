"""`Weights`: the name under which a cache publishes its rows in tiers, in one epoch."""

from __future__ import annotations

import os

import torch

from vitcache.tiers.names import weights_digest


class Weights:
    """The weights of one epoch of a cache. Compared by identity; never changed.

    Parameters
    ----------
    name
        The caller's name of the weights. None: a random one, which no other process has.
    dtype
        The dtype of the rows.
    epoch
        The epoch of the cache in which rows of these weights may be entered.

    Attributes
    ----------
    digest
        `weights_digest` of the name, 32 bytes.
    is_named
        Whether the caller gave the name, so that the tiers know generations of it.
    """

    __slots__ = ("digest", "epoch", "is_named")

    def __init__(self, name: str | bytes | None, dtype: torch.dtype, epoch: int) -> None:
        self.digest = weights_digest(os.urandom(32) if name is None else name, dtype)
        self.epoch = epoch
        self.is_named = name is not None


class CurrentWeights:
    """The weights that a cache publishes now. One thread at a time sets them; any thread reads them."""

    __slots__ = ("weights",)

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
