"""Erasure of the files of a tenant or of a key, which their places name: no index is needed."""

from __future__ import annotations

import os

from vitcache.tiers.folders import MISSING, open_folder, remove
from vitcache.tiers.header import name_at


def erase_files(entries: int, tenant: bytes | None, key: bytes | None) -> int:
    """Remove every file of a tenant, of a key, or of both. Return the number of removed entries.

    The removal is durable when it returns.

    Parameters
    ----------
    entries
        Descriptor of the folder of all entries.
    tenant, key
        32 bytes each. Without a tenant, the folders of all tenants are searched, one folder in each.
    """
    tenants = os.listdir(entries) if tenant is None else [tenant.hex()]
    erased = sum(_erase_in_tenant(entries, name, key) for name in tenants)
    if tenant is not None and key is None:
        remove(tenant.hex(), entries)  # if it is empty
    os.fsync(entries)
    return erased


def _erase_in_tenant(entries: int, tenant: str, key: bytes | None) -> int:
    try:
        with open_folder(tenant, entries) as folder:
            shards = os.listdir(folder) if key is None else [key[:1].hex()]
            erased = sum(_erase_in_shard(folder, tenant, shard, key) for shard in shards)
            os.fsync(folder)
            return erased
    except OSError as error:
        if error.errno in MISSING:  # also a symbolic link, or a file in place of the folder
            return 0
        raise


def _erase_in_shard(tenant_folder: int, tenant: str, shard: str, key: bytes | None) -> int:
    erased = 0
    try:
        with open_folder(shard, tenant_folder) as folder:
            for file in os.listdir(folder):
                if key is None or file.startswith(f"{key.hex()}."):
                    is_entry = name_at(tenant, file) is not None
                    erased += remove(file, folder) and is_entry
            os.fsync(folder)
    except OSError as error:
        if error.errno not in MISSING:
            raise
    if key is None:
        remove(shard, tenant_folder)
    return erased
