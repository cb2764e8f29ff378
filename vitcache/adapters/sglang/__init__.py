"""vitcache in SGLang: a plug-in that builds the `inputs_embeds` of a step. No file of SGLang is changed.

A name is imported when it is first used. So a process of SGLang that only loads the plug-in imports through
it neither torch nor the rest of vitcache.
"""

from typing import TYPE_CHECKING

from vitcache.lazy import lazy_names

if TYPE_CHECKING:
    from vitcache.adapters.sglang.counts import SglangStats
    from vitcache.adapters.sglang.plugin import register
    from vitcache.adapters.sglang.service import stats

__all__ = ["SglangStats", "register", "stats"]

if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name
    __getattr__ = lazy_names(
        __name__,
        {
            "vitcache.adapters.sglang.counts": ("SglangStats",),
            "vitcache.adapters.sglang.plugin": ("register",),
            "vitcache.adapters.sglang.service": ("stats",),
        },
    )
