"""Checks before a scheduler of SGLang starts: an engine must not serve without vitcache in silence."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vitcache._version import __version__
from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.sglang.engine_modules import MM_SCHEDULE, SCHEDULER
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.stock_cache import STOCK_CACHE
from vitcache.adapters.sglang.targets import (
    TARGETS,
    Target,
    check_target,
    check_targets,
)

TESTED_VERSIONS = ("0.5.23",)
ANY_VERSION = "VITCACHE_SGLANG_ANY_VERSION"
logger = logging.getLogger("vitcache.adapters.sglang")


def around_set_up(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """`Scheduler.__init__`: checks the version, the options and the hooks before the scheduler is made.

    Behind it, allocates the tiers and the ring of the scheduler's model: if their memory is missing, the
    engine does not start.
    """
    check_start_up()
    LOADED.are_original = True
    result = original(scheduler, *args, **kwargs)
    config = getattr(scheduler, "model_config", None)
    if getattr(config, "is_multimodal", False) and not is_disabled():
        from vitcache.adapters.sglang.early_cache import make_early  # imports torch

        make_early(scheduler)
    return result


def around_make_cache(original: Callable[..., Any], max_size: int = 0) -> Any:
    """`init_mm_embedding_cache`: vitcache gets the bytes that SGLang has reserved, SGLang's cache none.

    Raises RuntimeError as `check_start_up` if the hook that checks the other ones is not in place: a plug-in
    that applied its own hooks to `Scheduler.__init__` before has prevented it.
    """
    if SCHEDULER in sys.modules and not is_disabled():
        check_target(SET_UP)
    return STOCK_CACHE.make(original, max_size)


# The hook of the first one checks the hooks of all other targets.
SET_UP = Target(SCHEDULER, "Scheduler.__init__", around_set_up, ("self",))
MAKE_CACHE = Target(MM_SCHEDULE, "init_mm_embedding_cache", around_make_cache, ("max_size",))
HOOKED = (*TARGETS, MAKE_CACHE, SET_UP)


def check_start_up() -> None:
    """Check the version of SGLang, the options and the hooks. With VITCACHE_DISABLE set, checks nothing.

    Raises
    ------
    RuntimeError
        If vitcache was not tested with the version, or a hook is not in place.
    ValueError, TypeError
        If an option is wrong.
    """
    if is_disabled():
        return
    from vitcache.adapters.sglang.options import Options  # imports torch

    check_version()
    Options.from_environment()
    check_targets()
    check_target(MAKE_CACHE)
    logger.info("vitcache %s builds the inputs_embeds of the steps of this scheduler", __version__)


def check_version() -> None:
    """Check that vitcache was tested with the installed version of SGLang.

    While the environment variable VITCACHE_SGLANG_ANY_VERSION is ``"1"``, every version is accepted. A
    version that was not tested is then logged as a warning.

    Raises
    ------
    RuntimeError
        If the version was not tested and the variable is not ``"1"``. The message names both versions and the
        variable.
    """
    try:
        found = version("sglang").partition("+")[0]  # without the local part, as of 0.5.23+cpu
    except PackageNotFoundError:
        found = "of an unknown version"
    if found in TESTED_VERSIONS:
        return
    tested = " and ".join(TESTED_VERSIONS)
    if os.environ.get(ANY_VERSION) != "1":
        raise RuntimeError(
            f"SGLang is {found}, vitcache was tested with SGLang {tested}: install a tested version, or set "
            f"{ANY_VERSION}=1 to try this one, or leave vitcache out of SGLANG_PLUGINS"
        )
    logger.warning("SGLang is %s, vitcache was tested with SGLang %s", found, tested)
