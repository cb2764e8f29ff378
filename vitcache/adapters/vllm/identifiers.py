"""Identifiers of vLLM as keys: an identifier is a hash, or a text of a client."""

from __future__ import annotations

from vitcache.keys.identifiers import key_from_id


def encode(text: str) -> bytes:
    """Return a text of a client, which may contain surrogates, as bytes."""
    return text.encode("utf-8", "surrogatepass")


def tenant_of(salt: str) -> str:
    """Return the name of the tenant in the cache and its tiers of requests with a `cache_salt`.

    It is the salt; surrogates, which no digest accepts, are escaped. Keys contain the salt itself.
    """
    return salt.encode("utf-8", "backslashreplace").decode("utf-8")


def source_key(identifier: str) -> bytes:
    """Return the key of an item in vLLM's encoder cache, which has one entry per identifier."""
    return key_from_id(encode(identifier))
