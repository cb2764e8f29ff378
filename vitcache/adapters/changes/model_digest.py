"""`model_digest`: names the weights of a model outside of its language model, by their content."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from vitcache.adapters.changes.code_text import code_text
from vitcache.adapters.changes.outer_modules import outer_modules
from vitcache.adapters.changes.settings import HOOK_TABLES, describe, is_hook
from vitcache.adapters.changes.watched_parts import WatchedParts
from vitcache.adapters.changes.weight_parts import inner_tensors
from vitcache.adapters.disabling import logger
from vitcache.adapters.fingerprint import package_version
from vitcache.keys.digests import digests_of
from vitcache.keys.framing import Frames, version_node
from vitcache.keys.readback import pieces, read_back
from vitcache.rows import check_extent

# Settings that tell where a model was loaded from, and notes of transformers about its own work.
_OF_THE_PROCESS = {
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",
}
_PACKAGES = ("torch", "transformers")
_MOST_THREADS = 4
_MOST_LEVELS = 3  # of the objects with tensors beside a quantised weight
_BLOCK_BYTES = 8 << 20
_HINT = "give a namespace that names the weights, such as their revision"


class _Part(NamedTuple):
    """A tensor whose bytes are hashed. `text` has its dtype, and more if it belongs to a quantised weight."""

    name: str
    text: str
    tensor: Tensor


def model_digest(model: nn.Module) -> bytes:
    """Return a digest of everything in a model that decides the rows of an item, 32 bytes.

    It is equal for equal models in every process, on every device, and whatever the order in which they were
    loaded. It contains the names, dtypes, shapes and bytes of the weights outside of the language model, also
    those of quantised weights and of adapters; the values of configs and other settings, without the name of
    the model's folder and without the choice of adapters, which keys contain; the code of hooks and of
    replaced methods; and the versions of torch and transformers.
    The bytes are hashed on up to 4 threads. Bytes on a GPU are copied to the host in blocks of 8 MiB.

    If a hook or method has no text (`code_text`), the digest is random, and a warning names it.

    Parameters
    ----------
    model
        The module that owns the stock methods. Its weights must not change during the call.

    Raises
    ------
    ValueError
        If a weight cannot be read: its bytes are not on a device, as those of an offloaded model; the process
        has only a part of them; or its kind is unknown. The message names the weight, and a remedy.

    Notes
    -----
    Any thread may call it. The host waits for the current stream of each device.
    """
    watched = WatchedParts(model, frozenset())
    texts = {
        name: text
        for name, text in watched.settings.items()
        if name.rpartition(".")[2] not in _OF_THE_PROCESS and not is_hook(name)
    }
    codes = _codes(model, watched.methods)
    parts: list[_Part] = []
    for name in sorted(watched.weights):
        parts += _parts_of(name, watched.weights[name])
    num_threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with torch.no_grad():
        contents = digests_of((_blocks(part) for part in parts), num_threads)
    frames = Frames(version_node("model.1"))
    tensors = [
        [part.name, part.text, list(part.tensor.shape), content]
        for part, content in zip(parts, contents, strict=True)
    ]
    packages = {package: package_version(package) for package in _PACKAGES}
    kind = [type(model).__module__, type(model).__qualname__]
    kind.append(str(getattr(getattr(model, "config", None), "model_type", None)))
    frames.add_value([kind, packages, sys.byteorder, texts, codes, tensors], "model")
    return frames.key()


def _codes(model: nn.Module, methods: dict[str, Any]) -> dict[str, str]:
    """Return the texts of replaced methods, and of hooks other than those of transformers."""
    found: list[tuple[str, Any]] = list(methods.items())
    tables: list[tuple[str, Any]] = [(f"_global{name}", module_hooks) for name in HOOK_TABLES]
    for path, module in outer_modules(model).items():
        if module is not model:  # features do not run its hooks
            tables += [(f"{path}.{name}", module) for name in HOOK_TABLES]
    for name, owner in tables:
        hooks = list((vars(owner).get(name.rpartition(".")[2]) or {}).values())
        found += [(f"{name}.{number}", hook) for number, hook in enumerate(filter(_can_alter, hooks))]
    texts = {}
    for name, function in found:
        text = code_text(function)
        if isinstance(function, torch.ScriptObject):
            _refuse(name, "is packed by a library")
        if text is None:
            logger.warning(
                "%s of %s has no name in other processes, so rows are not kept after this process; %s",
                name,
                type(model).__name__,
                _HINT,
            )
            text = os.urandom(16).hex()
        texts[name] = text
    return texts


def _can_alter(hook: Any) -> bool:
    """Whether a hook can alter values. Those of transformers keep outputs, or are of training."""
    return not str(getattr(hook, "__module__", "")).startswith("transformers.")


def _parts_of(name: str, tensor: Tensor) -> Iterator[_Part]:
    """Yield the parts of a weight. The inner tensors of a subclass are weights of their own."""
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__} {tensor.dtype}"
    if hasattr(tensor, "placements") or hasattr(tensor, "ds_id"):
        _refuse(name, "is sharded, and this process has a part of it")
    if tensor.is_meta:
        _refuse(name, "is offloaded, or has no bytes")
    if tensor.layout is not torch.strided or tensor.is_nested:
        _refuse(name, f"has the layout {tensor.layout}")
    if tensor.is_quantized:
        yield from _quantized(name, tensor)
    elif inner_tensors(tensor):
        _, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        yield _Part(name, f"{kind} {tuple(tensor.shape)} {context!r}", _no_bytes())
    else:
        try:
            check_extent(name, tensor)
        except ValueError:
            _refuse(name, "has no memory now")
        yield _Part(name, kind, tensor)
        yield from _beside(name, vars(tensor), _MOST_LEVELS)


def _quantized(name: str, tensor: Tensor) -> Iterator[_Part]:
    """Yield the values, the scales and the zero points of a tensor of torch's quantised dtypes."""
    text = f"{tensor.dtype} {tensor.qscheme()}"
    yield _Part(name, text, tensor.int_repr())
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale = f"{tensor.q_scale()!r} {tensor.q_zero_point()}"
        yield _Part(f"{name}.scale", scale, _no_bytes())
    else:
        yield _Part(f"{name}.scales", str(tensor.q_per_channel_axis()), tensor.q_per_channel_scales())
        yield _Part(f"{name}.zero_points", "", tensor.q_per_channel_zero_points())


def _beside(name: str, values: dict[str, Any], levels: int) -> Iterator[_Part]:
    """Yield the values that a library keeps as attributes of a weight, such as scales of bitsandbytes."""
    for key in sorted(values):
        value, path = values[key], f"{name}.{key}"
        if key in _OF_THE_PROCESS or value is None:
            continue
        if isinstance(value, Tensor):
            yield from _parts_of(path, value)
        elif (text := describe(value, [])) is not None:
            yield _Part(path, text, _no_bytes())
        elif levels and isinstance(getattr(value, "__dict__", None), dict) and not callable(value):
            yield from _beside(path, vars(value), levels - 1)


def _blocks(part: _Part) -> Iterator[np.ndarray]:
    """Yield the bytes of a tensor in C order, in blocks on the host."""
    values = part.tensor.detach().resolve_conj().resolve_neg()
    if values.is_contiguous():
        yield from _flat_blocks(values.reshape(-1).view(torch.uint8))
        return
    for piece in pieces(values, _BLOCK_BYTES):
        yield from _flat_blocks(piece.contiguous().reshape(-1).view(torch.uint8))


def _flat_blocks(values: Tensor) -> Iterator[np.ndarray]:
    if values.is_cuda:
        yield from read_back(values, buffer_bytes=_BLOCK_BYTES)
    else:
        for piece in pieces(values, _BLOCK_BYTES):
            yield piece.cpu().numpy()


def _no_bytes() -> Tensor:
    return torch.empty(0, device="cpu", dtype=torch.uint8)


def _refuse(name: str, reason: str) -> NoReturn:
    raise ValueError(f"the weights cannot be named by their bytes, because {name} {reason}: {_HINT}")
