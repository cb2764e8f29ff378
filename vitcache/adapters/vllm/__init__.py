"""vitcache as an encoder cache of vLLM: a connector and a cache manager, which two flags of vLLM select.

A name is imported when it is first used. So a process of vLLM that only loads the plug-in imports through it
neither torch nor the rest of vitcache.
"""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.adapters.vllm.connector import VitCacheConnector
    from vitcache.adapters.vllm.manager import VitCacheManager
    from vitcache.adapters.vllm.plugin import register

__all__ = ["VitCacheConnector", "VitCacheManager", "register"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
            "vitcache.adapters.vllm.connector": ("VitCacheConnector",),
            "vitcache.adapters.vllm.manager": ("VitCacheManager",),
            "vitcache.adapters.vllm.plugin": ("register",),
        },
    )
