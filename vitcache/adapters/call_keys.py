"""`keys_of`: the keys of the items of a call; `key_options`: the options that they depend on."""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import starmap
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts
from vitcache.keys.content import content_key
from vitcache.keys.parts import frame, frame_dict, has_parts, part_keys, region_keys, tensor_keys
from vitcache.tracing import traced

# Arguments that the stock methods pass on and the vision tower ignores. Every cached call returns an object,
# so `return_dict` is not part of the key; the rest concern the language model and its loss. Any other
# argument may change the rows.
_IGNORED_BY_THE_TOWER = {"return_dict", "use_cache", "num_items_in_batch", "output_router_logits"}
_IGNORED_BY_THE_TOWER |= {"logits_to_keep"}
_FLAGS = {"output_attentions", "output_hidden_states"}  # false is their default

_NO_OPTIONS = frame({})


def key_options(options: dict[str, Any], config: Any) -> tuple[dict[str, Any], bytes] | None:
    """Return the options of a call that the keys of its items depend on, and their frame; None if no key can.

    An option that is None stands for the config's value. A key can contain None, a number, a string, or a
    list or tuple of these.
    """
    given: dict[str, Any] = {}
    for name, option in options.items():
        if name not in _IGNORED_BY_THE_TOWER:
            if not _is_plain(option):
                return None
            value = getattr(config, name, None) if option is None else option
            if value is not None and not (name in _FLAGS and value is False):
                given[name] = value
    return given, frame(given) if given else _NO_OPTIONS


@traced("key")
def keys_of(
    parts: CallParts,
    pixels: Tensor,
    modality: str,
    given: dict[str, Any],
    framed: bytes,
    namespace: bytes,
) -> list[bytes]:
    """Return the key of each item: of its pixels and of the options that are `given`, also `framed`.

    On the host, all keys are computed from one view of `pixels`, if the parts have bounds or regions in it.
    """
    identities = parts.identities
    if identities and isinstance(identities[0], dict):
        return [
            content_key(
                parts.arguments(item)[parts.names[0]],
                namespace=namespace,
                extra={"modality": modality, "item": identity, "options": given},
            )
            for item, identity in enumerate(identities)
        ]
    if identities is None:
        extras = [_frame_extra(modality, framed)] * len(parts.shapes)
    else:
        extras = list(starmap(partial(_frame_extra, modality, framed), identities))
    if parts.bounds is not None and has_parts(pixels):
        return part_keys(pixels, parts.bounds, parts.shapes, extras, namespace)
    if parts.regions is not None and pixels.device.type == "cpu":
        return region_keys(pixels, parts.regions, parts.shapes, extras, namespace)
    items = [parts.arguments(item)[parts.names[0]] for item in range(len(parts.shapes))]
    return tensor_keys(items, extras, namespace)


@lru_cache(maxsize=4096, typed=True)
def _frame_extra(modality: str, options: bytes, *identity: Any) -> bytes:
    """Return the frame of the `extra` of an item's key. `options` is framed. No identity stands for None."""
    item = list(identity) if identity else None
    return frame_dict({"modality": frame(modality), "item": frame(item), "options": options})


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
