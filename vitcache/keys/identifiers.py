"""`key_from_id`: an engine's own identifier of an item, of any length, as a key of 32 bytes."""

from __future__ import annotations

from vitcache.arguments import to_int
from vitcache.keys.framing import Frames, node, version_node
from vitcache.keys.namespace import Namespace, to_namespace


def key_from_id(identifier: str | bytes | int, *, namespace: bytes | Namespace = b"") -> bytes:
    """Return the key of an item that an engine has named: 32 bytes over `identifier` and `namespace`.

    Use it where the engine already has a name for an item's content, such as vLLM's `mm_hash` (a str) or
    SGLang's `hash` (an int): then nothing is hashed but the name. Equal identifiers must mean equal content.
    The type is part of the key: ``"1"``, ``b"1"`` and ``1`` give different keys. No key equals a
    `content_key`.

    Parameters
    ----------
    identifier
        A str, bytes or int, of any length and sign. A str is hashed as UTF-8. An integer of NumPy equals the
        int of the same value.
    namespace
        As for `content_key`: bytes or a `Namespace`. It must name everything that the rows depend on and the
        identifier does not, such as the model and the tenant.

    Returns
    -------
    bytes
        32 bytes.

    Raises
    ------
    TypeError
        If `identifier` is not a str, bytes or an int, or is a bool; if `namespace` is neither bytes nor a
        `Namespace`.
    ValueError
        If UTF-8 cannot encode `identifier`: it contains a surrogate.

    Examples
    --------
    >>> from vitcache import EmbeddingCache, Namespace, key_from_id
    >>> namespace = Namespace("my-model", tenant="a")
    >>> key = key_from_id("5f2e-image-3", namespace=namespace)
    >>> len(key)
    32
    >>> key_from_id(1) == key_from_id("1")
    False

    Notes
    -----
    The algorithm is that of `content_key`; its name is part of the hashed bytes. Any thread may call.
    """
    space = to_namespace(namespace)
    if isinstance(identifier, str):
        try:
            identifier.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"identifier cannot be encoded in UTF-8: character {error.start} is a surrogate, "
                f"{identifier[error.start]!r}"
            ) from None
    elif isinstance(identifier, bytes):
        identifier = bytes(identifier)  # np.bytes_ is bytes, too
    else:
        try:
            identifier = to_int("identifier", identifier)
        except TypeError:
            kind = type(identifier).__name__
            raise TypeError(f"identifier must be a str, bytes or an int, got {kind}") from None
    frames = Frames(version_node("identifier.1"), node(b"b", space))
    frames.add_value(identifier, "identifier")
    return frames.key()
