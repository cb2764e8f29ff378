"""The plug-in of SGLang's group `sglang.srt.plugins`: registers the hooks.

Imports neither torch nor the rest of vitcache, because every process of SGLang loads it, with and without
images.
"""

from __future__ import annotations

import sys
from contextvars import Context, copy_context
from functools import partial

from vitcache.adapters.sglang.late_hooks import LateHooks
from vitcache.adapters.sglang.start_up import HOOKED


def register() -> None:
    """Register the hooks with SGLang's `HookRegistry`, which applies them after the plug-ins have run.

    SGLang calls it in each of its processes. A module of SGLang that is not loaded is hooked when it is
    imported: the detokenizer and the tokenizer import nothing for vitcache. When a scheduler starts, its
    hooks, the version of SGLang and the options are checked; if a check fails, the engine does not start.
    With VITCACHE_DISABLE set, SGLang's own functions run. A second call changes nothing until SGLang's
    `HookRegistry.reset`.

    Examples
    --------
    SGLang calls it through the entry point. A program of one process calls it itself:

    >>> import vitcache.adapters.sglang
    >>> vitcache.adapters.sglang.register()  # doctest: +SKIP
    >>> HookRegistry.apply_hooks()  # of sglang.srt.plugins.hook_registry  # doctest: +SKIP
    """
    missing = {target.module for target in HOOKED} - set(sys.modules)
    for module in {target.module for target in HOOKED} - missing:
        _register(module)
    if missing:
        # The context names the plug-in, as whose hooks SGLang logs those that are registered in it.
        LateHooks(missing, partial(_hook_late, copy_context())).install()


def _register(module: str) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target in HOOKED:
        if target.module == module and not _is_registered(HookRegistry, target.path, target.hook):
            HookRegistry.register(target.path, target.hook, HookType.AROUND)


def _is_registered(registry: type, path: str, hook: object) -> bool:
    known = getattr(registry, "_hooks", {}).get(path, ())
    return any(entry[1] is hook for entry in known)


def _hook_late(context: Context, module: str) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    # SGLang applies the hooks of other plug-ins itself, perhaps at this moment: such a hook has imported the
    # module. If they were applied here, too, they would be called twice.
    patched: set[str] = getattr(HookRegistry, "_patched", set())
    waiting = set(getattr(HookRegistry, "_hooks", ())) - patched
    context.copy().run(_register, module)
    patched |= waiting
    try:
        HookRegistry.apply_hooks()
    finally:
        patched -= waiting
