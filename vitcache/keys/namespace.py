"""`Namespace`: names everything that rows depend on, except the item's content."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from vitcache.keys.framing import Frames, version_node


@dataclass(frozen=True)
class Namespace:
    """Names everything that the rows depend on, except the item. Different namespaces share no keys.

    Parameters
    ----------
    model, revision
        Names of the vision tower and of its weights.
    processor
        Fingerprint of the processor (`processor_fingerprint`). Needed if keys are computed from encoded files
        or decoded pixels, and not from features.
    adapter, dtype
        Names of the vision tower's adapter and of the dtype of the rows.
    tenant
        Name of the tenant. Entries are shared only between items of the same tenant.
    epoch
        A number of at least 0. Increase it when the weights are changed in place.

    Raises
    ------
    TypeError
        If `epoch` is not an int, or is a bool; if another field is not a str.
    ValueError
        If `epoch` is negative.

    Examples
    --------
    >>> from vitcache import Namespace, content_key
    >>> one, two = (Namespace("my-model", tenant=name) for name in ("one", "two"))
    >>> content_key(b"a photo", namespace=one) == content_key(b"a photo", namespace=two)
    False

    Notes
    -----
    Immutable: any thread may use it.
    """

    model: str
    revision: str = ""
    processor: str = ""
    adapter: str = ""
    dtype: str = ""
    tenant: str = ""
    epoch: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = int if field.name == "epoch" else str
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(
                    f"Namespace.{field.name} must be {kind.__name__}, got {type(value).__qualname__}"
                )
        if self.epoch < 0:
            raise ValueError(f"Namespace.epoch is {self.epoch}, it must be at least 0")

    def digest(self) -> bytes:
        """Return the hash of all fields and their names, 32 bytes: the namespace as bytes."""
        frames = Frames(version_node("namespace.1"))
        frames.add_value({field.name: getattr(self, field.name) for field in fields(self)}, "namespace")
        return frames.key()


def to_namespace(value: Any) -> bytes:
    """Return a namespace as bytes: the digest of a `Namespace`, or `value` itself if it is bytes.

    Raises
    ------
    TypeError
        If `value` is neither bytes nor a `Namespace`.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, Namespace):
        return value.digest()
    raise TypeError(f"namespace must be bytes or a Namespace, got {type(value).__qualname__}")


def tenant_of(value: Any) -> str:
    """Return the tenant that a namespace names: `Namespace.tenant`, or "" for all other values."""
    return value.tenant if isinstance(value, Namespace) else ""
