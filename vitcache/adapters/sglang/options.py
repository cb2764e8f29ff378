"""`Options`: the operator's options of the plug-in, from the environment variable VITCACHE_SGLANG_OPTIONS."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any

from vitcache.adapters.mooncake_options import DEFAULT_WORTH, to_address, to_worth
from vitcache.arguments import INT64_MAX, check_bool, shown, to_bytes, to_int
from vitcache.cache.policies import POLICIES
from vitcache.ring.pinned_ring import MIN_BYTES

VARIABLE = "VITCACHE_SGLANG_OPTIONS"
_FEWEST_BYTES = {"device_bytes": 1, "host_bytes": 0, "ring_bytes": MIN_BYTES, "disk_bytes": 1 << 20}
# Options without effect unless another one is set, too.
_NEEDS = {
    "disk": ("host_bytes", "disk_bytes"),
    "disk_bytes": ("disk",),
    "mooncake": ("host_bytes",),
    "mooncake_worth": ("mooncake",),
}


@dataclass(frozen=True)
class Options:
    """The options of the plug-in.

    Attributes
    ----------
    device_bytes
        Size of the device tier of each rank. None: as many bytes as SGLang has reserved for its own cache of
        embeddings (SGLANG_VLM_CACHE_SIZE_MB), or `UNRESERVED_BYTES` if it has reserved none.
    host_bytes
        Size of the host tier of each rank, in pinned memory; 0: no host tier.
    max_rows_per_encode
        Most rows of one call of the encoder. None: the default of `VisionPipeline`, times the ranks that
        share the items of a call.
    policy
        The policy of each tier, as in `EmbeddingCache`.
    ring_bytes
        Size of the pinned ring of each rank. None: `RING_BYTES` if vitcache copies features of the model to
        a CUDA device, else no ring.
    trust_engine_hash
        True: the 64-bit hash of SGLang stands for the content of an item. Items are then not hashed by
        vitcache, and two items with one hash, of one modality, one number of rows and equal grids are one.
    disk
        A folder for a disk tier below the host tier, which all ranks of the machine share. None: no disk
        tier.
    disk_bytes
        Most bytes of the folder.
    mooncake
        The address of the master of a Mooncake store, a tier that servers on many machines share. With
        `disk`, it is the tier below the disk. None: no store.
    mooncake_worth
        `MooncakeTier.worth`: rows are fetched from the store, and stored there, only if the transfer takes at
        most this part of the encode time. None: always.
    weights_name
        Names the weights in these tiers: equal names only for equal weights. None: the revision of the
        model if it is a commit hash; else a random name.

    Examples
    --------
    >>> Options.from_json('{"device_bytes": "2GiB", "host_bytes": "16GiB"}').host_bytes
    17179869184
    """

    device_bytes: int | None = None
    host_bytes: int = 0
    max_rows_per_encode: int | None = None
    policy: str = "lru"
    ring_bytes: int | None = None
    trust_engine_hash: bool = False
    disk: str | None = None
    disk_bytes: int = 0
    mooncake: str | None = None
    mooncake_worth: float | None = DEFAULT_WORTH
    weights_name: str | None = None

    @property
    def has_tiers(self) -> bool:
        """Whether there is a tier below the host tier."""
        return self.disk is not None or self.mooncake is not None

    @classmethod
    def from_environment(cls) -> Options:
        """Read the environment variable. Raises as `from_json`."""
        return cls.from_json(os.environ.get(VARIABLE, ""))

    @classmethod
    def from_json(cls, text: str) -> Options:
        """Read and check the options.

        Parameters
        ----------
        text
            A JSON object. An empty text stands for an object without options.

        Raises
        ------
        ValueError
            If `text` is not JSON, an option or a policy is unknown, an option has two values, a number is too
            small or too large, a name is empty or no text, `mooncake` is not an address, or an option is
            given without one that it needs.
        TypeError
            If `text` is not a JSON object, or an option has the wrong type.
        """
        try:
            values = json.loads(text, object_pairs_hook=_one_value_each) if text.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{VARIABLE} is {shown(text)}, it must be a JSON object ({error})") from None
        if not isinstance(values, dict):
            raise TypeError(f"{VARIABLE} must be a JSON object, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"{VARIABLE} has the unknown options {shown(unknown)}; known options: {', '.join(known)}"
            )
        options = cls(**{name: _check(name, value) for name, value in values.items()})
        for name, needed in _NEEDS.items():
            missing = [other for other in needed if name in values and not getattr(options, other)]
            if missing:
                raise ValueError(f"{VARIABLE}[{name!r}] needs {' and '.join(map(repr, missing))}")
        if "weights_name" in values and not options.has_tiers:
            raise ValueError(f"{VARIABLE}['weights_name'] needs 'disk' or 'mooncake'")
        return options


def _one_value_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of a JSON object. Python's parser would take the last one of two equal names."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name has two values")
    return values


def _check(name: str, value: Any) -> Any:
    option = f"{VARIABLE}[{name!r}]"
    if name == "trust_engine_hash":
        check_bool(option, value)
        return value
    if name == "policy":
        return _check_policy(option, value)
    if name in ("disk", "weights_name"):
        return _check_name(option, value)
    if name == "mooncake":
        return to_address(option, value)
    if name == "mooncake_worth":
        return to_worth(option, value)
    if name == "max_rows_per_encode":
        return to_int(option, value, 1, INT64_MAX)
    return to_int(option, to_bytes(option, value, _FEWEST_BYTES[name]), maximum=INT64_MAX)


def _check_str(option: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{option} must be a str, got {shown(value)} of type {type(value).__name__}")


def _check_name(option: str, value: Any) -> str:
    name = _check_str(option, value)
    if not name.strip() or not name.isprintable():  # nor is a lone surrogate
        raise ValueError(f"{option} is {shown(name)}, it must be a text of printable characters")
    return name


def _check_policy(option: str, value: Any) -> str:
    policy = _check_str(option, value)
    if policy not in POLICIES:
        raise ValueError(f"{option} is {shown(policy)}, it must be one of {', '.join(map(repr, POLICIES))}")
    return policy
