"""`settings_for`: settings of an image processor that follow from a model's configuration."""

from __future__ import annotations

from typing import Any

# Settings that have the same name in the configuration of the vision tower, or another one.
_TOWER_NAMES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
    "encoder_patch_size": "patch_size",
    "pooling_kernel_size": "pooling_kernel_size",
}
_MODEL_NAMES = {
    "image_grid_pinpoints": "image_grid_pinpoints",
    "downsample_factor": "downsample_factor",
    "max_soft_tokens": "vision_soft_tokens_per_image",
}
# Settings that a configuration does not have.
_FIXED: dict[str, dict[str, Any]] = {"dots3_note": {"temporal_patch_size": 1}}


def settings_for(config: Any, processor_class: Any) -> dict[str, Any]:
    """Return the settings of an image processor with which its outputs fit the model.

    Checkpoints save these settings. Without a checkpoint they follow from the sizes in the configuration:
    `patch_size`, `spatial_merge_size` and `image_size` of the tower, for example. All other settings, such as
    the largest number of pixels, are the defaults of `processor_class`.
    """
    tower = getattr(config, "vision_config", None)
    settings = dict(_FIXED.get(config.model_type, {}))
    defaults = _Defaults(processor_class)
    for owner, names in ((tower, _TOWER_NAMES), (config, _MODEL_NAMES)):
        for name, source in names.items():
            value = getattr(owner, source, None)
            if value is not None and isinstance(defaults.get(name), type(value)):
                settings[name] = value
    side = getattr(tower, "image_size", None)
    if isinstance(side, list | tuple):
        side = side[0]
    if isinstance(side, int):
        settings |= _image_sizes(side, defaults)
    patch = defaults.get("patch_size")
    if isinstance(patch, dict) and tower is not None:  # Pixtral: the patches of a merged row
        merged = tower.patch_size * getattr(config, "spatial_merge_size", 1)
        settings["patch_size"] = {"height": merged, "width": merged}
    high = getattr(getattr(config, "high_res_vision_config", None), "image_size", None)
    if isinstance(high, int):
        settings["high_res_size"] = {"height": high, "width": high}
    return settings


class _Defaults:
    """The default settings of an image processor: attributes of its class, or of an object."""

    def __init__(self, processor_class: Any) -> None:
        self._class = processor_class
        self._object = processor_class()

    def get(self, name: str) -> Any:
        """Return a setting, or None."""
        return getattr(self._class, name, None) or getattr(self._object, name, None)


def _image_sizes(side: int, defaults: _Defaults) -> dict[str, Any]:
    """Return the settings that contain the tower's image size: a tower of squares of `side` pixels."""
    size, crop, tile = map(defaults.get, ("size", "crop_size", "max_image_size"))
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
