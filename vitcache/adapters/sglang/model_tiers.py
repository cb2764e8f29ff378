"""The lower tiers of a model's cache, the name of its weights, and the line of the log that shows them."""

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
from vitcache.tiers.mooncake_tier import MooncakeTier
from vitcache.tiers.protocol import Tier
from vitcache.versions import installed_version

_PACKAGES = ("sglang", "transformers", "torch")

logger = logging.getLogger("vitcache.adapters.sglang")


def make_tiers(options: Options) -> Sequence[Tier]:
    """Return the tiers below the host tier of a cache. Each cache gets objects of its own.

    The ranks share the folder and the store: equal names have equal rows on all of them. The folder is opened
    here, once. The store is not: a server starts and serves without it, and uses it when it is there.

    Raises
    ------
    OSError
        If the folder cannot be opened.
    ImportError
        If the options have a store, and Mooncake is not installed.
    """
    tiers: list[Tier] = []
    if options.disk is not None:
        disk = DiskTier(options.disk, options.disk_bytes)
        disk.open()  # a cache would only log the error, and serve without the disk
        disk.close()
        tiers.append(disk)
    if options.mooncake is not None:
        # Ranks have equal rows at about the same time: one of them sends these, and the other ones skip them.
        has_ranks = parallel_value("tp_size", 1) > 1
        tiers.append(MooncakeTier(options.mooncake, single_flight=has_ranks, worth=options.mooncake_worth))
    return tiers


def weights_name(options: Options) -> str | None:
    """Return the name of the weights for a new cache; None: a random one.

    Ranks that split an encoder add their parts, so the last bits of a row depend on their number: it is a
    part of the name, as is the number of ranks that encode whole items (`--mm-enable-dp-encoder`). The code
    of an encoder is of SGLang, transformers and torch, so their versions are parts, too.
    """
    name = _known_name(options)
    if name is None or not LOADED.are_original:
        return None
    versions = ", ".join(f"{package} {installed_version(package)}" for package in _PACKAGES)
    ranks = f"{parallel_value('tp_size', 1)} tensor parallel ranks, {num_encoder_ranks()} encoders"
    return f"{name}, {ranks}, {versions}"


def log_name(options: Options) -> None:
    """Log whether a later start and other servers find the rows of the tiers, and under which name."""
    name = _known_name(options)
    if not options.has_tiers:
        return
    store = None if options.mooncake is None else f"the store of {options.mooncake}"
    places = " and ".join(filter(None, (options.disk, store)))
    if name is None or not LOADED.are_original:
        logger.warning(
            "vitcache finds no row of %s after a restart or of another server, because the weights have no "
            "name: %s",
            places,
            "they were changed or flushed since the start"
            if name
            else f"set weights_name in {VARIABLE}, or start with --revision and the hash of a commit",
        )
    else:
        logger.info("vitcache finds the rows of %s after a restart with the weights %r", places, name)


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
