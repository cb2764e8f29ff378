"""Identifiers of vLLM as keys: an identifier is a hash, or a text of a client."""

from __future__ import annotations

from vitcache.keys.identifiers import key_from_id


def encode(text: str) -> bytes:
    """Return a text of a client, which may contain surrogates, as bytes."""
    return text.encode("utf-8", "surrogatepass")


def source_key(identifier: str) -> bytes:
    """Return the key of an item in vLLM's encoder cache, which has one entry per identifier."""
    return key_from_id(encode(identifier))
