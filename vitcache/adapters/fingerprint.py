"""`processor_fingerprint`: a text that names an image processor, its settings and its packages."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# The packages that decode, resize and round. Another release of one of them may give other pixels.
_PACKAGES = ("transformers", "torchvision", "pillow", "torch", "numpy")
_PARTS = ("image_processor", "video_processor", "feature_extractor")


def processor_fingerprint(processor: Any) -> str:
    """Return a text that is equal for processors that make equal features from equal files.

    The text contains the processor's class, its settings, and the versions of the packages that decode and
    resize. The class distinguishes the backends: torchvision and PIL resize to different pixels. Use the text
    as `Namespace.processor` if keys are made from files or decoded pixels instead of features.

    Parameters
    ----------
    processor
        An image, video or audio processor of transformers, a processor that contains these, or any object
        with a method `to_json_string`.

    Raises
    ------
    TypeError
        If `processor` has no `to_json_string`.

    Notes
    -----
    The settings are read during this call. If they change, call it again. The text does not cover:

    - arguments of the processor's calls, such as `device`: pass these as `extra` of `content_key`;
    - code of your own: append its version to the text.

    This function does not import the packages whose versions it reads.

    Examples
    --------
    >>> from vitcache import Namespace, content_key, processor_fingerprint
    >>> class Processor:  # stands for one of transformers
    ...     def __init__(self, size):
    ...         self.size = size
    ...     def to_json_string(self):
    ...         return f'{{"size": {self.size}}}'
    >>> def key(processor):
    ...     namespace = Namespace("model", processor=processor_fingerprint(processor))
    ...     return content_key(b"bytes of a file", namespace=namespace.digest())
    >>> key(Processor(224)) == key(Processor(224)), key(Processor(224)) == key(Processor(448))
    (True, False)
    """
    if not callable(getattr(processor, "to_json_string", None)):
        raise TypeError(f"processor must have a method to_json_string, {type(processor).__name__} has none")
    parts = {"processor": processor} | {name: getattr(processor, name, None) for name in _PARTS}
    described = {name: _describe(part) for name, part in parts.items() if hasattr(part, "to_json_string")}
    return json.dumps(described | {"versions": {name: package_version(name) for name in _PACKAGES}})


def _describe(processor: Any) -> dict[str, Any]:
    kind = type(processor)
    settings = json.loads(processor.to_json_string())
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "settings": settings}


def package_version(package: str) -> str | None:
    """Return the version of an installed package, which is not imported; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
