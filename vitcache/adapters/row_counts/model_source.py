"""`ModelSource`: the configuration files of a model, found without the network."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ModelSource:
    """A model's configuration, and where it was read.

    Attributes
    ----------
    name
        The name that the user gave.
    config
        The configuration object of transformers.
    folder
        The folder that may have the settings of the image processor. None: the model has none.
    is_default
        Whether `config` is the default configuration of its class.
    """

    name: str
    config: Any
    folder: Path | None
    is_default: bool = False

    @property
    def part(self) -> Any:
        """The configuration of the part with the towers and the language model, such as a thinker."""
        return getattr(self.config, "thinker_config", self.config)


def find_model(name: str) -> ModelSource:
    """Return the configuration that `name` stands for. The network is not used.

    Parameters
    ----------
    name
        A configuration file, a folder with a ``config.json``, a model type of transformers such as
        ``"qwen3_vl"``, which stands for the default configuration of its class, or the name of a checkpoint
        in the local Hugging Face cache.

    Raises
    ------
    OSError
        If `name` does not stand for a configuration, or if the file cannot be read.
    ValueError
        If the file is not the configuration of a model that the installed transformers knows.
    """
    from transformers import CONFIG_MAPPING

    path = Path(name).expanduser()
    if path.is_dir():
        return ModelSource(name, _read_config(path / CONFIG_FILE), path)
    if path.is_file():
        return ModelSource(name, _read_config(path), path.parent if path.name == CONFIG_FILE else None)
    if name in CONFIG_MAPPING:
        return ModelSource(name, CONFIG_MAPPING[name](), None, is_default=True)
    cached = None if _looks_like_a_path(name) else _find_checkpoint(name)
    if cached is None:
        raise FileNotFoundError(
            f"{name!r} is not a file, a folder, a model type of transformers, or a checkpoint in the local "
            "Hugging Face cache"
        )
    return ModelSource(name, _read_config(cached), cached.parent)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((os.sep, ".", "~")) or name.endswith(".json")


def _find_checkpoint(name: str) -> Path | None:
    """Return the config.json of a checkpoint in the local Hugging Face cache, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, CONFIG_FILE)
    except HFValidationError:  # not a name of a checkpoint
        return None
    return Path(found) if isinstance(found, str) else None


def _read_config(path: Path) -> Any:
    from transformers import CONFIG_MAPPING, __version__

    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # RecursionError: too many nested lists
        raise ValueError(f"{path} is not JSON: {error}") from None
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(model_type, str):
        raise ValueError(f"{path} is not a model's configuration: it has no model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{path}: transformers {__version__} does not know the model type {model_type!r}")
    try:
        return CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # each class checks its values in its own way
        raise ValueError(f"{path} is not a configuration of {model_type}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error that another library raised."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
