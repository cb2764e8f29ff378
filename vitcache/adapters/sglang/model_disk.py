"""The disk tier of a model's cache, the name of its weights, and the line of the log that shows them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence

from vitcache.adapters.sglang.encoder_calls import num_encoder_ranks
from vitcache.adapters.sglang.engine_modules import parallel_value, server_arguments
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.options import VARIABLE, Options
from vitcache.tiers.disk_tier import DiskTier
from vitcache.tiers.protocol import Tier

logger = logging.getLogger("vitcache.adapters.sglang")


def make_tiers(options: Options) -> Sequence[Tier]:
    """Return the tiers below the host tier of a cache. Each cache gets objects of its own.

    The ranks of a machine share the folder: equal names have equal rows on all of them.

    Raises
    ------
    OSError
        If the folder cannot be opened.
    """
    if options.disk is None:
        return ()
    tier = DiskTier(options.disk, options.disk_bytes)
    tier.open()  # a cache would only log the error, and serve without the disk
    tier.close()
    return (tier,)


def weights_name(options: Options) -> str | None:
    """Return the name of the weights for a new cache; None: a random one.

    Ranks that split an encoder add their parts, so the last bits of a row depend on their number: it is a
    part of the name, as is the number of ranks that encode whole items (`--mm-enable-dp-encoder`).
    """
    name = _known_name(options)
    if name is None or not LOADED.are_original:
        return None
    return f"{name}, {parallel_value('tp_size', 1)} tensor parallel ranks, {num_encoder_ranks()} encoders"


def log_name(options: Options) -> None:
    """Log whether the rows of the disk tier are found after a restart, and under which name."""
    name = _known_name(options)
    if options.disk is None:
        return
    if name is None or not LOADED.are_original:
        logger.warning(
            "vitcache finds no row of %s after a restart, because the weights have no name: %s",
            options.disk,
            "they were changed or flushed since the start"
            if name
            else f"set weights_name in {VARIABLE}, or start with --revision and the hash of a commit",
        )
    else:
        logger.info("vitcache finds the rows of %s after a restart with the weights %r", options.disk, name)


def _known_name(options: Options) -> str | None:
    """Return `weights_name`, or the revision of the model if it is the hash of a commit."""
    if options.weights_name is not None:
        return options.weights_name
    arguments = server_arguments()
    revision = str(getattr(arguments, "revision", None) or "")
    path = str(getattr(arguments, "model_path", ""))
    # Adapters of `--lora-paths` keep their ids, whatever their weights are.
    if getattr(arguments, "lora_paths", None):
        return None
    # SGLang ignores the revision of a folder, unless it is a snapshot of Hugging Face's own cache.
    if not re.fullmatch("[0-9a-fA-F]{40}", revision) or (
        os.path.isdir(path) and os.path.basename(os.path.normpath(path)) != revision
    ):
        return None
    return revision
