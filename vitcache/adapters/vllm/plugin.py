"""The plug-in of vLLM's group `vllm.general_plugins`: registers the connector by its name.

Imports no other package, because every process of vLLM loads it, with and without vitcache's flags.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from vitcache.adapters.disabling import is_disabled

TESTED_VERSIONS = ("0.33.0",)
ANY_VERSION = "VITCACHE_VLLM_ANY_VERSION"
CONNECTOR = "VitCacheConnector"
logger = logging.getLogger("vllm.vitcache")  # below vLLM's logger, so that its handlers print the lines


def register() -> None:
    """Register the connector with vLLM under the name ``"VitCacheConnector"``, and the placed models.

    vLLM calls it in each of its processes, before it reads its configuration. Further calls change nothing.
    The placed models are those of vLLM, and behave so in an engine without vitcache's flags.
    If the version of vLLM was not tested, one line is logged as an error and nothing is registered: vLLM
    works as without vitcache, and an engine with vitcache's flags does not start. With VITCACHE_DISABLE set,
    the connector does nothing in every version, and no model is registered.
    """
    disabled = is_disabled()
    try:
        if not disabled:
            check_version()
    except RuntimeError as error:
        logger.error("%s", error)
        return
    from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory

    if CONNECTOR not in ECConnectorFactory._registry:  # a second registration of a name raises
        ECConnectorFactory.register_connector(CONNECTOR, "vitcache.adapters.vllm.connector", CONNECTOR)
    if not disabled:
        from vitcache.adapters.vllm.architectures import register_models

        register_models()


def check_version() -> None:
    """Check that vitcache was tested with the installed version of vLLM.

    While the environment variable VITCACHE_VLLM_ANY_VERSION is ``"1"``, every version is accepted. A version
    that was not tested is then logged as a warning, once per process.

    Raises
    ------
    RuntimeError
        If the version was not tested and the variable is not ``"1"``. The message names both versions and the
        variable.
    """
    found = vllm_version()
    if found in TESTED_VERSIONS:
        return
    if os.environ.get(ANY_VERSION) == "1":
        _warn(found)
        return
    raise RuntimeError(
        f"vLLM is {found}, vitcache was tested with vLLM {' and '.join(TESTED_VERSIONS)}: VitCacheConnector "
        "and VitCacheManager are not available. Install a tested version, or set "
        f"{ANY_VERSION}=1 to try this one"
    )


def vllm_version() -> str:
    """Return the version of the installed vLLM without its local part: ``"0.33.0"`` for 0.33.0+cpu."""
    try:
        found = version("vllm")
    except PackageNotFoundError:  # a source tree on the path
        import vllm

        found = vllm.__version__
    return found.partition("+")[0]


@cache
def _warn(found: str) -> None:
    tested = " and ".join(TESTED_VERSIONS)
    logger.warning(
        "vLLM is %s, vitcache was tested with vLLM %s: it starts because %s=1", found, tested, ANY_VERSION
    )
