"""The inventories of the engines in this process, for the managers of their encoder caches."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from vitcache.adapters.vllm.inventory import Inventory

# By id of the engine's config, which the connector keeps alive together with the inventory.
_inventories: WeakValueDictionary[int, Inventory] = WeakValueDictionary()


def enter_inventory(vllm_config: Any, inventory: Inventory) -> None:
    """Note the inventory of the engine with this config."""
    _inventories[id(vllm_config)] = inventory


def find_inventory(vllm_config: Any) -> Inventory:
    """Return the inventory of the engine with this config.

    Raises
    ------
    ValueError
        If the engine has no `VitCacheConnector`.
    """
    inventory = _inventories.get(id(vllm_config))
    if inventory is None:
        config = getattr(vllm_config, "ec_transfer_config", None)
        connector = getattr(config, "ec_connector", None)
        raise ValueError(
            f"VitCacheManager needs the connector VitCacheConnector, ec_connector is {connector!r}: "
            "set --ec-transfer-config, too (docs/vllm.md)"
        )
    return inventory
