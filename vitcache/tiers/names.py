"""The digests in the names of entries: of tenants, and of weights."""

from __future__ import annotations

import torch

from vitcache.keys.framing import Frames, version_node


def tenant_digest(tenant: str) -> bytes:
    """Return the digest of a tenant's name, 32 bytes. It is not secret: a name can be guessed from it."""
    frames = Frames(version_node("tenant.1"))
    frames.add_value(tenant, "tenant")
    return frames.key()


def weights_digest(name: bytes | str, dtype: torch.dtype) -> bytes:
    """Return the digest of the name of weights whose rows have a dtype, 32 bytes."""
    frames = Frames(version_node("weights.1"))
    frames.add_value([name, str(dtype)], "weights_name")
    return frames.key()


def generation_digest(weights: bytes, generation: int) -> bytes:
    """Return `EntryName.weights` of a generation of weights, 32 bytes; `weights` is from `weights_digest`."""
    frames = Frames(version_node("generation.1"))
    frames.add_value([weights, generation], "generation")
    return frames.key()
