"""Where the manager of vLLM's encoder cache finds the books of its engine: both are made in one process."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from vitcache.adapters.vllm.books import Books

# By id of the engine's config, which the connector keeps alive together with the books.
_books: WeakValueDictionary[int, Books] = WeakValueDictionary()


def enter_books(vllm_config: Any, books: Books) -> None:
    """Note the books of the engine with this config."""
    _books[id(vllm_config)] = books


def find_books(vllm_config: Any) -> Books:
    """Return the books of the engine with this config.

    Raises
    ------
    ValueError
        If the engine has no `VitCacheConnector`.
    """
    books = _books.get(id(vllm_config))
    if books is None:
        config = getattr(vllm_config, "ec_transfer_config", None)
        connector = getattr(config, "ec_connector", None)
        raise ValueError(
            f"VitCacheManager needs the connector VitCacheConnector, ec_connector is {connector!r}: "
            "set --ec-transfer-config, too (docs/vllm.md)"
        )
    return books
