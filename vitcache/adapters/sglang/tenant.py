"""The tenant of a request of SGLang: only requests of one tenant use the rows of one another."""

from __future__ import annotations

from typing import Any

NO_TENANT = ("", "")
_NAME = "_vitcache_tenant"  # in the `__dict__` of a request's `MultimodalInputs`


def remember_tenant(request: Any) -> None:
    """Store the `cache_salt` and the `extra_key` of a `Req` of SGLang with its items, if it has items."""
    inputs = request.multimodal_inputs
    if inputs is not None:
        names = (getattr(request, name, None) for name in ("cache_salt", "extra_key"))
        inputs.__dict__[_NAME] = tuple(str(name or "") for name in names)


def label_of(tenant: tuple[str, str]) -> str:
    """Return the name of a tenant for `Item.tenant`: its `cache_salt`, or else its `extra_key`.

    SGLang adds the id of a LoRA adapter to the `extra_key`: all rows of a `cache_salt` have one name.
    """
    salt, key = tenant
    return salt or key


def tenant_of(inputs: Any) -> tuple[str, str]:
    """Return the tenant that was stored with a `MultimodalInputs`, or `NO_TENANT`."""
    tenant: tuple[str, str] = inputs.__dict__.get(_NAME, NO_TENANT)
    return tenant
