"""`processor_fingerprint`: what the pixels depend on that an image processor makes of a file."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# What decodes, resizes and rounds. Releases of these may give other pixels.
_PACKAGES = ("transformers", "torchvision", "pillow", "torch", "numpy")
_PARTS = ("image_processor", "video_processor", "feature_extractor")


def processor_fingerprint(processor: Any) -> str:
    """Return a text that is equal for processors which make the same features of the same file.

    It has the class, which tells the backend: torchvision and PIL resize to different pixels. It has the
    settings, and the versions of the packages that compute. Use it as `Namespace.processor` where files or
    decoded pixels are hashed in the place of features.

    Parameters
    ----------
    processor
        An image, video or audio processor of transformers, or one that holds these, or any object with
        `to_json_string`.

    Raises
    ------
    TypeError
        If `processor` has no `to_json_string`.

    Notes
    -----
    Settings are read now: make it anew when they change. Not seen are arguments of a call, a `device` to run
    on among them, which belong in `extra` of the key, and code of your own, whose version is to be added to
    the text. Nothing is imported.
    """
    if not callable(getattr(processor, "to_json_string", None)):
        raise TypeError(f"a processor has to_json_string, {type(processor).__name__} has not")
    parts = {"processor": processor} | {name: getattr(processor, name, None) for name in _PARTS}
    described = {name: _describe(part) for name, part in parts.items() if hasattr(part, "to_json_string")}
    return json.dumps(described | {"versions": {name: _version(name) for name in _PACKAGES}})


def _describe(processor: Any) -> dict[str, Any]:
    kind = type(processor)
    settings = json.loads(processor.to_json_string())
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "settings": settings}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
