"""`find_attachable`: the module in which `attach` replaces methods, and its splits; or a refusal."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args, get_type_hints

from vitcache.adapters.families import FAMILIES, Family
from vitcache.adapters.feature_owner import MODALITIES, has_tower, method_name, serves, tower_names
from vitcache.adapters.model_outputs import KNOWN_FIELDS
from vitcache.adapters.refused_models import refusal_of
from vitcache.adapters.splits.call_parts import Split
from vitcache.adapters.splits.signature import UnknownForm, split_for_signature
from vitcache.adapters.vision_tower import name_of, owner_of
from vitcache.adapters.wrappers import unwrap


def find_attachable(model: Any, splits: Mapping[str, Split] | None) -> tuple[Any, Family]:
    """Return the module that owns the stock methods of `model`, and its family.

    The family is the one of the model type, or one that is made from the signatures of the stock methods.

    Parameters
    ----------
    splits
        The caller's own splits, by modality. They replace those of the family.

    Raises
    ------
    TypeError
        If the model cannot be attached; the message names the model and the reason. If `splits` is not a
        mapping of functions.
    ValueError
        If `splits` has a modality that the model does not have.
    """
    inner = unwrap(model)
    reason = refusal_of(getattr(inner, "config", None))
    if reason is not None:
        raise TypeError(f"{name_of(inner)} cannot be attached: {reason}")
    owner = owner_of(model, "attached")
    name = name_of(inner)
    given = _check_splits(splits, owner, name)
    family = FAMILIES.get(owner.config.model_type)
    if family is None or not has_tower(owner, family.tower):
        family = _family_by_signature(owner, name, given)
    if next(owner._modules[family.tower].parameters(), None) is None:
        reason = "has no parameters, as in FullyShardedDataParallel(use_orig_params=False)"
        raise TypeError(f"{name} cannot be attached: its {family.tower} {reason}")
    served = {
        modality: split
        for modality, split in family.splits.items()
        if serves(owner, modality) and (modality != "audio" or has_tower(owner, family.audio_tower))
    }
    return owner, replace(family, splits=served | given, unverified=family.unverified | given.keys())


def _check_splits(splits: Any, owner: Any, name: str) -> dict[str, Split]:
    if splits is None:
        return {}
    if not isinstance(splits, Mapping):
        raise TypeError(f"splits must be a mapping of modalities to functions, got {type(splits).__name__}")
    for modality, split in splits.items():
        if modality not in MODALITIES or not serves(owner, modality):
            served = ", ".join(each for each in MODALITIES if serves(owner, each))
            raise ValueError(f"splits has {modality!r}, but {name} encodes {served}")
        if not callable(split):
            raise TypeError(f"splits[{modality!r}] must be a function, got {type(split).__name__}")
    return dict(splits)


def _family_by_signature(owner: Any, name: str, given: Mapping[str, Split]) -> Family:
    """Return a family for a model without a name. Only images must have a split that is understood."""
    towers = tower_names(owner)
    if not towers:
        raise TypeError(f"{name} cannot be attached: it has no weights outside of its language model")
    # In a model that only hears, a name such as "encoder" is that of the audio tower.
    audio = [tower for tower in towers if "audio" in tower] or towers
    vision = [tower for tower in towers if tower not in audio]
    splits: dict[str, Split] = {}
    reasons: list[str] = []
    for modality in MODALITIES:
        if serves(owner, modality) and modality not in given:
            method = getattr(type(owner), method_name(modality))
            try:
                _check_output_class(method)
                splits[modality] = split_for_signature(method)
            except UnknownForm as error:
                reasons.append(f"{method_name(modality)}: {error}")
                if modality == "image":
                    break
    understood = {*splits, *given}
    if not understood or (serves(owner, "image") and "image" not in understood):
        raise TypeError(f"{name} cannot be attached: {'; '.join(reasons)}")
    return Family(
        (vision or towers)[0], splits, audio_tower=audio[0], unverified=frozenset(splits), has_name=False
    )


def _check_output_class(method: Any) -> None:
    """Refuse a stock method whose declared output has a field that `attach` does not understand."""
    for cls in _output_classes(method):
        unknown = [field.name for field in dataclasses.fields(cls) if field.name not in KNOWN_FIELDS]
        if unknown:
            raise UnknownForm(
                f"its output {cls.__name__} has fields that are not known: {', '.join(unknown)}"
            )


def _output_classes(method: Any) -> Iterator[type]:
    try:
        declared = get_type_hints(inspect.unwrap(method)).get("return")
    except (NameError, TypeError, AttributeError):  # the first output is checked, too
        return
    for each in get_args(declared) or (declared,):
        if isinstance(each, type) and dataclasses.is_dataclass(each):
            yield each
