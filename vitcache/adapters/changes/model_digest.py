"""`model_digest`: names the weights of a model outside of its language model, by their content."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcache.adapters.changes.altering_hooks import altering_hooks
from vitcache.adapters.changes.code_text import LIBRARIES, CodeTexts, package_of
from vitcache.adapters.changes.digest_parts import HINT, HOOK, Part, parts_beside, refuse, weight_parts
from vitcache.adapters.changes.outer_modules import outer_modules
from vitcache.adapters.changes.settings import (
    OF_THE_PROCESS,
    is_hook,
)
from vitcache.adapters.changes.watched_parts import WatchedParts
from vitcache.adapters.disabling import logger
from vitcache.adapters.fingerprint import package_version
from vitcache.keys.digests import digests_of
from vitcache.keys.framing import Frames, version_node
from vitcache.keys.readback import pieces, read_back

_PACKAGES = ("torch", "transformers")
_MOST_THREADS = 4
_BLOCK_BYTES = 8 << 20


def model_digest(model: nn.Module) -> bytes:
    """Return a digest of everything in a model that decides the rows of an item, 32 bytes.

    It is equal for equal models in every process, on every device, and whatever the order in which they were
    loaded. It contains the names, dtypes, shapes and bytes of the weights outside of the language model, also
    those of quantised weights and of adapters; the values of configs and other settings, without the name of
    the model's folder and without the choice of adapters, which keys contain; tensors and arrays in other
    attributes of its modules; the code of hooks and of replaced methods; and the versions of torch and
    transformers.
    The bytes are hashed on up to 4 threads. Bytes on a GPU are copied to the host in blocks of 8 MiB.

    If a hook or method has no text (`CodeTexts`), the digest is random, and a warning names it.

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
        if name.rpartition(".")[2] not in OF_THE_PROCESS and not is_hook(name)
    }
    codes = _codes(model, watched.methods)
    parts: list[Part] = []
    for name in sorted(watched.weights):
        parts += weight_parts(name, watched.weights[name])
    known = frozenset(map(id, model.modules()))
    for path, module in outer_modules(model).items():
        if module is not model:  # its forward sets some
            parts += parts_beside(module, path, known)
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
    modules = outer_modules(model)
    for path, module in modules.items():
        if module is not model:  # features do not run its hooks
            found += _movers(path, module)
    for name, hooks in altering_hooks(model).items():
        found += [(f"{name}.{number}", hook) for number, hook in enumerate(hooks)]
    found += _patched({type(module) for module in modules.values()})
    texts = {}
    code_texts = CodeTexts(model.modules())
    for name, function in found:
        text = code_texts.text(function)
        if isinstance(function, torch.ScriptObject):
            refuse(name, "is packed by a library")
        if text is None:
            logger.warning(
                "%s of %s has no name in other processes, so rows are not kept after this process; %s",
                name,
                type(model).__name__,
                HINT,
            )
            text = os.urandom(16).hex()
        texts[name] = text
    return texts


def _movers(path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the hooks of accelerate's kind that are not its own: these may alter values."""
    hook = vars(module).get(HOOK)
    for number, each in enumerate(getattr(hook, "hooks", () if hook is None else (hook,))):
        if not type(each).__module__.startswith("accelerate."):
            yield f"{path}.{HOOK}.{number}", each


def _patched(kinds: set[type]) -> Iterator[tuple[str, Any]]:
    """Yield the methods that another package has put into classes of the libraries."""
    of_libraries = {base for kind in kinds for base in kind.__mro__ if _package(base.__module__) in LIBRARIES}
    for kind in of_libraries:
        for name, function in vars(kind).items():
            if isinstance(function, FunctionType):
                package = package_of(function)
                if package not in LIBRARIES and package not in sys.stdlib_module_names:
                    yield f"{kind.__module__}.{kind.__qualname__}.{name}", function


def _package(name: str) -> str:
    return name.partition(".")[0]


def _blocks(part: Part) -> Iterator[np.ndarray]:
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
