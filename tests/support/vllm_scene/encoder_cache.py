"""A plain model of `VitCacheManager`: vLLM's encoder cache in the scheduler, counted in pages."""

from __future__ import annotations

from vitcache.adapters.vllm.inventory import Inventory
from vllm_scene.requests import Request


class EncoderCacheModel:
    """Which identifiers are cached, and which requests hold them; evicts the one that was released first."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        inventory.owner = self
        self.reset_rows()

    def reset_rows(self) -> None:
        self.pages: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.holders: dict[str, set[tuple[str, int]]] = {}
        self.unheld: list[str] = []
        self.freed: list[str] = []
        self.asked = 0

    def reset(self) -> None:
        self.reset_rows()
        self._inventory.reset()

    def forget(self, identifier: str) -> set[str]:
        if identifier not in self.pages:
            return set()
        users = {name for name, _ in self.holders[identifier]}
        self._remove(identifier)
        return users

    def get_cached_num_encoder_embeds(self, request: Request, index: int) -> int | None:
        return self.rows.get(request.mm_features[index].identifier)

    def check_and_update_cache(self, request: Request, index: int) -> bool:
        identifier = request.mm_features[index].identifier
        if identifier not in self.pages:
            return False
        self._hold(identifier, request, index)
        self._inventory.hit(request, index)
        return True

    def can_allocate(self, request: Request, index: int, budget: int, num_rows_before: int) -> bool:
        self._inventory.ask(request, index)
        is_within_budget = request.get_num_encoder_embeds(index) <= budget
        # `has` reserves the host pages of the entry until the step ends, so it is asked only if needed.
        if not is_within_budget and not self._inventory.has(request.mm_features[index].identifier):
            return False
        num_pages = self._inventory.pages_of(request, index)
        if num_pages > self._inventory.settings.shown_pages:
            self._inventory.fail_too_large(request, index)
            return False
        if not num_rows_before:
            self.asked = 0
        needed = self.asked + num_pages
        held = sum(pages for name, pages in self.pages.items() if name not in self.unheld)
        if held + needed > self._inventory.settings.shown_pages:
            return False
        while sum(self.pages.values()) + needed > self._inventory.settings.shown_pages:
            self._remove(self.unheld[0])
        self.asked = needed
        return True

    def allocate(self, request: Request, index: int) -> None:
        identifier = request.mm_features[index].identifier
        self.pages[identifier] = self._inventory.pages_of(request, index)
        self.rows[identifier] = request.get_num_encoder_embeds(index)
        self.holders[identifier] = set()
        self._hold(identifier, request, index)

    def free_encoder_input(self, request: Request, index: int) -> None:
        identifier = request.mm_features[index].identifier
        holders = self.holders.get(identifier, set())
        if (request.request_id, index) in holders:
            holders.remove((request.request_id, index))
            if not holders:
                self.unheld.append(identifier)

    def free(self, request: Request) -> None:
        for index in range(len(request.mm_features)):
            self.free_encoder_input(request, index)
        self._inventory.preempt(request)

    def get_freed_mm_hashes(self) -> list[str]:
        freed, self.freed = [name for name in self.freed if name not in self.pages], []
        return freed

    def _hold(self, identifier: str, request: Request, index: int) -> None:
        self.holders[identifier].add((request.request_id, index))
        if identifier in self.unheld:
            self.unheld.remove(identifier)

    def _remove(self, identifier: str) -> None:
        del self.pages[identifier], self.rows[identifier], self.holders[identifier]
        if identifier in self.unheld:
            self.unheld.remove(identifier)
        self.freed.append(identifier)
