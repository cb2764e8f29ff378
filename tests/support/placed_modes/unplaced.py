"""The modes in which rows are not placed, by family and version of transformers, and why."""

from __future__ import annotations

from typing import NamedTuple

from placed_modes.calls import CALLS
from placed_modes.compiled import COMPILED
from placed_modes.families import MAIN_FAMILIES, SPEECH
from placed_modes.generates import GENERATES
from placed_modes.media_calls import MEDIA_CALLS
from placed_modes.stock_failures import QWEN
from placed_modes.versions import is_installed


class Unplaced(NamedTuple):
    """In these modes, `AttachStats.unplaced_calls` has `reason`.

    This is so in the versions of transformers from `since` on and before `before`. If the reason is None,
    `forward` gets no items.
    """

    families: tuple[str, ...]
    modes: tuple[str, ...]
    reason: str | None
    since: str | None = None
    before: str | None = None


SOUNDS = ("audio", "images beside audio", "all media")
VIDEOS = ("videos", "images beside videos")
CHUNKED = tuple(name for name in MAIN_FAMILIES if name not in (*QWEN, "glm4v"))  # these fail: `FAILURES`
ANY = (*CALLS, *GENERATES, *MEDIA_CALLS)
PADDED = "the features are padded, for several layers, or on another device than the cache"
ENCODED = "the features were encoded before the call"

UNPLACED = (
    # The forward selects the rows of clips with a mask.
    Unplaced(("gemma4", "gemma4_unified", "gemma3n"), SOUNDS, PADDED),
    # The forward adds a row to each video.
    Unplaced(("llava_onevision",), VIDEOS, "cat reads the features", before="5.18"),
    Unplaced(
        ("qwen3_vl", "qwen3_vl_moe"),
        tuple(COMPILED),
        "the forward passes deepstack features on to a compiled language model",
        before="5.18",
    ),
    # `generate` forgets the images.
    Unplaced(CHUNKED, ("prefill chunks",), None, before="5.18"),
    # Families that are not in `MAIN_FAMILIES`.
    Unplaced(SPEECH, ANY, "no test shows that this model can be placed"),
    Unplaced(("video_llama_3",), VIDEOS, "__getitem__ reads the features"),
    Unplaced(("llava_next_video",), VIDEOS, "flatten reads the features"),
    Unplaced(("llama4",), ANY, "linear reads the features"),
    Unplaced(("granite4_vision",), tuple(CALLS), PADDED),
    Unplaced(("granite4_vision",), tuple(GENERATES), ENCODED, since="5.18"),
    Unplaced(("granite4_vision",), tuple(GENERATES), PADDED, before="5.18"),
    Unplaced(("molmo2",), ANY, "reshape reads the features"),
    # `generate` calls the encoder itself.
    Unplaced(("florence2",), tuple(GENERATES), None),
)


def expected_reasons(family: str, mode: str) -> set[str] | None:
    """The reasons why calls of this mode are not placed. None: they are placed."""
    for entry in UNPLACED:
        if family in entry.families and mode in entry.modes and is_installed(entry.since, entry.before):
            return set() if entry.reason is None else {entry.reason}
    return None
