"""The keys of SGLang's items: which content names an item, and the arguments that are hashed with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import Parameter

from vitcache.keys.content import KEY_BYTES, content_key
from vitcache.keys.framing import Frames

# SGLang's transports store their own state under such names. The encoder's output does not depend on it.
_TRANSPORT = "_sglang_"
# Each rank has decoded a part of the video: its feature does not tell the rows, which all ranks compute.
_PARTIAL = "dp_decode_sharded"


class ItemKey(NamedTuple):
    """How the pipeline finds the key of an item.

    Attributes
    ----------
    key
        The key, or None: the feature is hashed with `arguments`.
    arguments
        Everything beside the feature that the rows depend on.
    is_shared
        False: `key` is a random one, and only the requests that have the same item object find its rows.
    digest
        The key that the pipeline has computed from the feature, as `Item.digest`; or None.
    """

    key: bytes | None
    arguments: dict[str, Any]
    is_shared: bool = True
    digest: Any = None


def item_key(
    source: Any, num_rows: int, tenant: tuple[str, str], trust_engine_hash: bool, can_be_opened: bool = False
) -> ItemKey:
    """Choose the key of an item of SGLang.

    Parameters
    ----------
    source
        SGLang's `MultimodalDataItem`. With an `identity`, a digest of its content that SGLang has computed,
        this is hashed in place of the feature. Data that cannot be hashed are left out then.
    num_rows
        Rows of the item.
    tenant
        The `cache_salt` and the `extra_key` of the request.
    trust_engine_hash
        Whether the 64-bit `hash` of the item is hashed in place of the feature.
    can_be_opened
        Whether the feature is in the memory of another process, and this one may read it.
    """
    data = {
        name: _plain(value)
        for name, value in source.model_specific_data.items()
        if not name.startswith(_TRANSPORT)
    }
    hashed = {name: value for name, value in data.items() if is_hashable(value)}
    # Some encoders return features of the format PRECOMPUTED_EMBEDDING unchanged.
    form = getattr(source, "format", None)
    arguments = {
        "modality": source.modality.name,
        "format": None if form is None else form.name,
        "tenant": list(tenant),
        "rows": num_rows,
        "data": hashed,
    }
    if data.get(_PARTIAL):
        return _unshared()
    if source.identity is not None:
        return _named("identity", bytes(source.identity), arguments)
    if trust_engine_hash and source.hash is not None:
        return _named("hash", source.hash.to_bytes(8, "big"), arguments)
    if len(hashed) == len(data) and (can_be_opened or is_feature(source.feature)):
        return ItemKey(None, arguments)
    return _unshared()


def _unshared() -> ItemKey:
    return ItemKey(os.urandom(KEY_BYTES), {}, is_shared=False)


def _named(kind: str, name: bytes, arguments: dict[str, Any]) -> ItemKey:
    """Return the key of an item whose content has a name of SGLang."""
    return ItemKey(content_key(name, extra=[kind, *arguments.values()]), {})  # a list is hashed faster


def is_feature(value: Any) -> bool:
    """Whether `content_key` hashes all of a feature: an array, a tensor, bytes, or a list of these.

    It does not hash the attributes of a subclass of `Tensor`.
    """
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_feature, value))
    if isinstance(value, Tensor) and type(value) not in (Tensor, Parameter):
        return False
    return _accepts(Frames().add_feature, value)


def is_hashable(value: Any) -> bool:
    """Whether `content_key` can hash a value of `extra`."""
    return _accepts(Frames().add_value, value)


def _accepts(add: Callable[[Any, str], None], value: Any) -> bool:
    try:
        add(value, "")  # reads no elements
    except (TypeError, ValueError):
        return False
    return True


def _plain(value: Any) -> Any:
    """Return a value with the names of enum members in place of the members, and Python's numbers."""
    if isinstance(value, Enum):
        return [type(value).__name__, value.name]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
