"""`ImageRows`: the rows of an image in the cache. `RowCounter` computes them for one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.arguments_by_name import ArgumentsByName
from vitcache.adapters.attachable import find_attachable
from vitcache.adapters.model_outputs import item_rows
from vitcache.adapters.row_counts.image_processor import ImageProcessor
from vitcache.adapters.row_counts.model_source import ModelSource, first_line
from vitcache.adapters.row_counts.weightless_model import WeightlessModel
from vitcache.adapters.splits.call_parts import ItemCall, as_parts

# The default configuration of some classes mixes the sizes of different checkpoints.
_HINT = "; this is the default configuration of its class: give the config.json of a checkpoint"

# The image processor gives whole images, so that its outputs are not the arguments of the stock method.
_CUT_BY_PROCESSOR = {"fuyu"}

_OTHER_PIXELS = "pixel_values_images"  # in models that name the pixels of images and of videos apart


@dataclass(frozen=True)
class ImageRows:
    """The entries of one image.

    Attributes
    ----------
    entries
        Number of rows of each entry. Some models encode tiles: then an image has an entry per tile.
    width
        Elements of a row.
    dtype
        The dtype of a row.
    """

    entries: tuple[int, ...]
    width: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.width * self.dtype.itemsize


class RowCounter:
    """Computes the rows of images in the cache of an attached model, without the model's weights.

    The stock image processor processes an image of the size in question. `attach`'s split divides the stock
    call into items, and the stock method encodes each item with a model whose tensors have no memory. No
    formula of our own is involved.

    Attributes
    ----------
    processor
        The model's image processor.

    Raises
    ------
    TypeError
        If the model cannot be attached, or if it has no images. The message says why.
    ValueError
        If the configuration gives no model, or no vision tower; if the model has no image processor, or
        one that does not cut images into the model's patches.
    ImportError
        If the model or its image processor needs a package that is not installed.

    Examples
    --------
    >>> import torch
    >>> from vitcache.adapters.row_counts.image_rows import RowCounter
    >>> from vitcache.adapters.row_counts.model_source import find_model
    >>> counter = RowCounter(find_model("qwen3_vl"), torch.bfloat16)
    >>> rows = counter.count(720, 1280)
    >>> rows.entries, rows.width
    ((880,), 14336)
    """

    def __init__(self, source: ModelSource, dtype: torch.dtype) -> None:
        if source.config.model_type in _CUT_BY_PROCESSOR:
            raise ValueError(
                f"{source.name}: its rows are not counted, because not its image processor, but the model's "
                "processor cuts images into patches"
            )
        if source.is_default and getattr(source.part, "vision_config", self) is None:
            raise ValueError(f"{source.name}: its configuration has no vision_config{_HINT}")
        try:
            self._weightless = WeightlessModel(source.part, dtype)
        except ImportError:
            raise
        except Exception as error:  # each class checks its configuration in its own way
            raise ValueError(
                f"{source.name}: no model has this configuration: {first_line(error)}"
                + _HINT * source.is_default
            ) from error
        self._owner, family = find_attachable(self._weightless.model, None)
        if "image" not in family.splits:
            raise TypeError(f"{type(self._owner).__name__} has no images")
        self._split = family.splits["image"]
        self._bind = ArgumentsByName(self._owner.get_image_features)
        self._dtype = dtype
        self._source = source
        self.processor = ImageProcessor(source, self._owner.config)

    def count(self, height: int, width: int) -> ImageRows:
        """Return the rows of an image of this size in pixels.

        Raises
        ------
        ValueError
            If the model cannot encode the outputs of its image processor, or if the image processor refuses
            an image of this size.
        """
        try:
            shapes = self._encode(self.arguments(height, width))
        except Exception as error:
            raise ValueError(
                f"{self._source.name} cannot encode an image of {width}x{height}: {first_line(error)}"
                + _HINT * self._source.is_default
            ) from error
        [(row_width, dtype)] = {(rows.shape[1], rows.dtype) for rows in shapes}
        return ImageRows(tuple(rows.shape[0] for rows in shapes), row_width, dtype)

    def arguments(self, height: int, width: int) -> dict[str, Tensor]:
        """Return the arguments of the stock method for one image: the outputs of the image processor."""
        outputs = self.processor.process(height, width)
        pixel_name, *names = self._bind.signature.parameters
        arguments = {pixel_name: _pixels(outputs, pixel_name)}
        arguments |= {name: outputs[name] for name in names if name in outputs and name != _OTHER_PIXELS}
        return {
            name: value.to(self._dtype) if value.is_floating_point() else value
            for name, value in arguments.items()
        }

    def _encode(self, given: dict[str, Tensor]) -> list[Tensor]:
        """Return the rows of each item, as tensors without memory."""
        arguments = self._bind((), given)
        parts = as_parts(self._split(self._owner.config, arguments))
        if parts is None:
            raise TypeError("the outputs of the image processor have an unknown form")
        options = {name: value for name, value in given.items() if name not in parts.names}
        found: dict[Any, Tensor] = {}
        rows = []
        for item in range(len(parts.shapes)):
            call = parts.item_call(item)
            form = _form(call)
            if form not in found:
                with self._weightless.running():
                    output = self._owner.get_image_features(**options, **call.arguments, return_dict=True)
                    found[form] = item_rows(output, call.slices)
            rows.append(found[form])
        return rows


def _pixels(outputs: dict[str, Tensor], name: str) -> Tensor:
    pixels = outputs.get(name, outputs.get(_OTHER_PIXELS))
    if pixels is None:
        raise ValueError(f"the image processor gives no {name}, but {', '.join(outputs) or 'no tensor'}")
    return pixels


def _form(call: ItemCall) -> Any:
    """Return the shape of the pixels and the other arguments: items that agree in them have as many rows."""
    _, *others = call.arguments.values()
    values = [value.tolist() if isinstance(value, Tensor) else value for value in others]
    return call.pixels.shape, repr(values)
