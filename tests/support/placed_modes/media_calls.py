"""Modes with videos and audio clips."""

from __future__ import annotations

from placed_modes.side import Item, Mode

IMAGE, VIDEO, AUDIO = "image", "video", "audio"


def _items(*items: Item) -> Mode:
    return lambda side: [side.logits(side.prompt(*items)), *side.generate(side.prompt(*items))]


_ITEMS: dict[str, tuple[Item, ...]] = {
    "videos": ((VIDEO, 0), (VIDEO, 1)),
    "images beside videos": ((IMAGE, 0), (VIDEO, 0), (IMAGE, 1), (VIDEO, 1)),
    "audio": ((AUDIO, 0), (AUDIO, 1)),
    "images beside audio": ((AUDIO, 0), (IMAGE, 0)),
    "all media": ((AUDIO, 0), (VIDEO, 0), (IMAGE, 0)),
}
MEDIA_CALLS: dict[str, Mode] = {name: _items(*items) for name, items in _ITEMS.items()}
MODALITIES: dict[str, set[str]] = {
    name: {modality for modality, _ in items} for name, items in _ITEMS.items()
}
"""The modalities that a model must have for these modes."""
