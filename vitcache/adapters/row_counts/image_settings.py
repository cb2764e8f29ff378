"""`settings_for`: settings of an image processor that follow from a model's configuration."""

from __future__ import annotations

from typing import Any

# Settings that have the same name in the configuration of the vision tower, or another one.
_TOWER_NAMES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
    "pooling_kernel_size": "pooling_kernel_size",
}
_MODEL_NAMES = {
    "image_grid_pinpoints": "image_grid_pinpoints",
    "max_soft_tokens": "vision_soft_tokens_per_image",
}


def settings_for(config: Any, processor_class: Any) -> dict[str, Any]:
    """Return the settings of an image processor with which its outputs fit the model.

    Checkpoints save these settings. Without a checkpoint they follow from the sizes in the configuration:
    `patch_size`, `spatial_merge_size` and `image_size` of the tower, for example. All other settings, such as
    the largest number of pixels, are the defaults of `processor_class`.
    """
    tower = getattr(config, "vision_config", None)
    settings: dict[str, Any] = {}
    for owner, names in ((tower, _TOWER_NAMES), (config, _MODEL_NAMES)):
        for name, source in names.items():
            value = getattr(owner, source, None)
            if value is not None and isinstance(getattr(processor_class, name, None), type(value)):
                settings[name] = value
    side = getattr(tower, "image_size", None)
    if isinstance(side, list | tuple):
        side = side[0]
    if isinstance(side, int):
        settings |= _image_sizes(side, processor_class)
    patch = getattr(processor_class, "patch_size", None)
    if isinstance(patch, dict):  # Pixtral: the patches of a merged row
        merged = tower.patch_size * getattr(config, "spatial_merge_size", 1)  # type: ignore[union-attr]
        settings["patch_size"] = {"height": merged, "width": merged}
    return settings


def _image_sizes(side: int, processor_class: Any) -> dict[str, Any]:
    """Return the settings that contain the tower's image size: a tower of squares of `side` pixels."""
    size, crop, tile = (
        getattr(processor_class, name, None) for name in ("size", "crop_size", "max_image_size")
    )
    settings: dict[str, Any] = {}
    if isinstance(tile, dict) and isinstance(
        size, dict
    ):  # Idefics3: an image is at most this many tiles wide
        tiles = size["longest_edge"] // tile["longest_edge"]
        settings["max_image_size"] = {"longest_edge": side}
        settings["size"] = {"longest_edge": tiles * side}
    elif isinstance(size, dict) and len(size) + ("height" in size) in (1, 3):
        settings["size"] = dict.fromkeys(size, side)
    if isinstance(crop, dict):
        settings["crop_size"] = dict.fromkeys(crop, side)
    return settings
