"""`VitCacheManager`: vLLM's encoder cache in the scheduler, with the size of vitcache's device tier."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.vllm.engine_inventory import find_inventory
from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.plugin import check_version


class VitCacheManager(EncoderCacheManager):
    """Manages vLLM's encoder cache, whose rows lie in the device tier of `VitCacheConnector`.

    The size is that of the device tier, less one page in sixteen, counted in pages. `reset` reaches every
    tier of every worker.

    Notes
    -----
    Name it in ``--ec-manager-config``; see docs/vllm.md. vLLM calls it from the scheduler's thread. In
    `num_free_slots`, `num_freeable_slots`, `freeable` and `num_embeds_by_hash`, a slot is a page here, not a
    row.
    """

    @classmethod
    def create_manager(cls, *, cache_size: int, vllm_config: Any) -> EncoderCacheManager:
        """Return the manager of an engine. With VITCACHE_DISABLE set, it is vLLM's own.

        Raises
        ------
        ValueError
            If the engine has no `VitCacheConnector`, or the device tier is smaller than the largest item.
        """
        if is_disabled():
            return EncoderCacheManager.create_manager(cache_size=cache_size, vllm_config=vllm_config)
        check_version()
        inventory = find_inventory(vllm_config)
        settings = inventory.settings
        if settings.pages_for(cache_size) > settings.shown_pages:
            check_largest_item(inventory, vllm_config)
        return cls(inventory)

    def __init__(self, inventory: Inventory) -> None:
        super().__init__(inventory.settings.shown_pages)
        self._inventory = inventory
        self._num_rows: dict[str, int] = {}  # by identifier
        self._asked_pages = 0  # of items of one request that `can_allocate` has accepted in this pass
        inventory.owner = self

    def reset(self) -> None:
        """Forget all rows. Every worker drops them from every tier before its next step."""
        super().reset()
        self._num_rows.clear()
        self._inventory.counts.add("resets")
        self._inventory.reset()

    def forget(self, identifier: str) -> set[str]:
        """Drop the rows of an identifier. Return the requests that use them."""
        users = self.cached.pop(identifier, None)
        if users is None:
            return set()
        num_pages = self.num_embeds_by_hash.pop(identifier)
        self._num_rows.pop(identifier, None)
        if self.freeable.pop(identifier, None) is None:
            self.num_freeable_slots += num_pages
        self.num_free_slots += num_pages
        self.freed.append(identifier)
        return set(users)

    def get_cached_num_encoder_embeds(self, request: Any, input_id: int) -> int | None:
        """Return the number of rows under the identifier of an item, or None."""
        return self._num_rows.get(request.mm_features[input_id].identifier)

    def check_and_update_cache(self, request: Any, input_id: int) -> bool:
        """Whether the rows of an item are cached. If so, the request holds them."""
        is_cached: bool = super().check_and_update_cache(request, input_id)
        if is_cached:
            self._inventory.hit(request, input_id)
        return is_cached

    def can_allocate(
        self, request: Any, input_id: int, encoder_compute_budget: int, num_embeds_to_schedule: int
    ) -> bool:
        """Whether pages for an item are free or can be freed. If so, frees them.

        `num_embeds_to_schedule` are the rows of earlier items of the request in this pass, 0 for the first
        one. Their pages are counted here. An item that is loaded needs no compute budget. A request whose
        item needs more pages than the device tier has can never run, so it ends with an error.
        """
        self._inventory.ask(request, input_id)
        is_within_budget = request.get_num_encoder_embeds(input_id) <= encoder_compute_budget
        if not is_within_budget and not self._inventory.has(request.mm_features[input_id].identifier):
            return False
        num_pages = self._inventory.pages_of(request, input_id)
        if num_pages > self.cache_size:
            self._inventory.fail_too_large(request, input_id)
            return False
        if not num_embeds_to_schedule:
            self._asked_pages = 0
        needed = self._asked_pages + num_pages
        if needed > self.num_freeable_slots:
            return False
        while needed > self.num_free_slots:
            identifier, size = self.freeable.popitem(last=False)
            del self.cached[identifier], self.num_embeds_by_hash[identifier], self._num_rows[identifier]
            self.freed.append(identifier)
            self.num_free_slots += size
        self._asked_pages = needed
        return True

    def allocate(self, request: Any, input_id: int) -> None:
        """Enter an item for which `can_allocate` was true."""
        identifier = request.mm_features[input_id].identifier
        num_pages = self._inventory.pages_of(request, input_id)
        self.cached.setdefault(identifier, set()).add(request.request_id)
        self.num_embeds_by_hash[identifier] = num_pages
        self._num_rows[identifier] = request.get_num_encoder_embeds(input_id)
        self._add_cached_input_id(request.request_id, input_id, identifier)
        self.num_free_slots -= num_pages
        self.num_freeable_slots -= num_pages

    def free(self, request: Any) -> None:
        """Release all items of a request that ends or is preempted."""
        super().free(request)
        self._inventory.preempt(request)


def check_largest_item(inventory: Inventory, vllm_config: Any) -> None:
    """Raise ValueError if the device tier is smaller than the largest item of the model."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget

    settings = inventory.settings
    budget = MultiModalBudget(vllm_config, MULTIMODAL_REGISTRY)
    for modality, num_rows in budget.mm_max_toks_per_item.items():
        width = settings.width_of(modality)
        num_pages = settings.pages_for(num_rows, width)
        if num_pages > settings.shown_pages:
            raise ValueError(
                f"device_bytes is {settings.device_bytes}: {settings.shown_pages} pages, but the largest "
                f"{modality} of this model has {num_rows} rows, which need {num_pages} pages: set "
                f"device_bytes to at least {settings.device_bytes_to_show(num_pages)}, or limit the size of "
                f"a {modality} with --mm-processor-kwargs"
            )
