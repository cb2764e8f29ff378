"""`ImageProcessor`: the image processor of a model, with its saved settings or those of its configuration."""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitcache.adapters.row_counts.image_settings import settings_for
from vitcache.adapters.row_counts.model_source import ModelSource, first_line

# Model types that transformers lists without an image processor: the type that has the same one.
_SAME_PROCESSOR = {"glm_ocr": "glm46v", "fast_vlm": "llava", "diffusion_gemma": "gemma4"}
_BACKENDS = ("pil", "torchvision")  # the first one needs fewer packages


class ImageProcessor:
    """The stock image processor of a model, and the options with which the model's processor calls it.

    Parameters
    ----------
    config
        The configuration that has the vision tower's: of `source`, or of a part of the model.

    Attributes
    ----------
    name
        The name of its class.
    is_saved
        Whether its settings are those of a file. If not, they are the defaults of the class, adapted to the
        sizes in the model's configuration.

    Raises
    ------
    ValueError
        If transformers has no image processor for the model, or the file of its settings is not valid.
    ImportError
        If the image processor needs a package that is not installed.
    """

    def __init__(self, source: ModelSource, config: Any) -> None:
        model_type = _model_type(source.config)
        saved = _saved_settings(source.folder)
        stock_class = _find_class(model_type, saved.get("image_processor_type"))
        self.is_saved = bool(saved)
        try:
            settings = saved or settings_for(config, stock_class)
            self._stock = stock_class.from_dict(settings)
        except Exception as error:  # each class checks its settings in its own way
            raise ValueError(
                f"{source.name}: {stock_class.__name__} refuses its settings: {first_line(error)}"
            ) from error
        self.name = stock_class.__name__
        fitted = {} if saved else settings
        self._options = {
            name: value
            for name, value in _call_options(model_type).items()
            if name not in fitted and hasattr(stock_class, name)
        }

    def process(self, height: int, width: int) -> dict[str, Tensor]:
        """Return the output tensors for one image of this size, by name.

        The pixels are random, because some models ignore an image whose pixels are all equal.
        """
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        outputs = self._stock(pixels, input_data_format="channels_last", return_tensors="pt", **self._options)
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def _model_type(config: Any) -> str:
    """Return the model type under which transformers lists the processors of a model."""
    model_type: str = config.model_type
    return _SAME_PROCESSOR.get(model_type, model_type.removesuffix("_thinker"))


def _saved_settings(folder: Path | None) -> dict[str, Any]:
    """Return the settings that a checkpoint's folder has, or an empty dict."""
    if folder is None:
        return {}
    auto = import_module("transformers.models.auto.image_processing_auto")
    try:
        settings: dict[str, Any] = auto.get_image_processor_config(str(folder), local_files_only=True)
    except (OSError, RecursionError) as error:  # RecursionError: too many nested lists
        raise ValueError(f"{folder}: the image processor cannot be read: {first_line(error)}") from error
    return settings


def _find_class(model_type: str, saved: str | None) -> Any:
    """Return the class of this name, or the class that transformers lists for the model type."""
    auto = import_module("transformers.models.auto.image_processing_auto")
    listed = auto.IMAGE_PROCESSOR_MAPPING_NAMES
    name = (saved or "").removesuffix("Fast")  # transformers 4 had two classes
    names = next((classes for classes in listed.values() if name in classes.values()), listed.get(model_type))
    if names is None:  # listed under the model type whose processor it uses
        processor = _processor_class(model_type)
        owner = processor.__module__.split(".")[-2] if processor is not None else ""
        names = listed.get(owner)
    if names is None:
        raise ValueError(f"transformers has no image processor for the model type {model_type!r}")
    for backend in _BACKENDS:
        with suppress(ImportError):
            found = auto.get_image_processor_class_from_name(names.get(backend, ""))
            if found is not None and not getattr(found, "is_dummy", False):
                return found
    raise ImportError(
        f"{' or '.join(names.values())} needs torchvision, which is not installed", name="torchvision"
    )


def _call_options(model_type: str) -> dict[str, Any]:
    """Return the options for images that the model's processor passes in each call.

    transformers 5.18 and later have them in the class, earlier versions in the class of its keywords.
    """
    processor = _processor_class(model_type)
    try:
        options = getattr(processor, "images_kwargs", None)
        if options is None:
            options = processor.valid_processor_kwargs._defaults.get("images_kwargs")
    except (AttributeError, ImportError):  # no processor, or a stand-in for one that cannot be imported
        return {}
    return {name: value for name, value in (options or {}).items() if name != "return_tensors"}


def _processor_class(model_type: str) -> Any:
    auto = import_module("transformers.models.auto.processing_auto")
    name = auto.PROCESSOR_MAPPING_NAMES.get(model_type)
    try:
        found = auto.processor_class_from_name(name) if name else None
    except ImportError:
        return None
    return found if inspect.isclass(found) else None
