"""The host tier in the inventory: its pages, and the order in which its entries are dropped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from vitcache.adapters.vllm.orders import ItemKey


class HostTier:
    """The entries of the workers' host tier in LRU order, and the number of their pages.

    An entry is alone in the host tier, or is the copy of an entry of the device tier.

    Attributes
    ----------
    num_pages, num_used
        Pages of the tier, and pages of its entries.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_used = 0
        # The least recently used entry is the first; the values are numbers of pages.
        self._copies: OrderedDict[ItemKey, int] = OrderedDict()
        self._alone: OrderedDict[ItemKey, int] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages of no entry."""
        return self.num_pages - self.num_used

    def add_copy(self, key: ItemKey, num_pages: int) -> None:
        """Enter the copy of an entry that stays in the device tier."""
        self._copies[key] = num_pages
        self.num_used += num_pages

    def add_alone(self, key: ItemKey, num_pages: int) -> None:
        """Enter an entry that leaves the device tier."""
        self._alone[key] = num_pages
        self.num_used += num_pages

    def keep_alone(self, key: ItemKey) -> None:
        """Note that the entry of a copy left the device tier."""
        self._alone[key] = self._copies.pop(key)

    def keep_as_copy(self, key: ItemKey) -> None:
        """Note that an entry is loaded into the device tier; it stays here as a copy."""
        self._copies[key] = self._alone.pop(key)

    def touch(self, key: ItemKey | None) -> None:
        """Note the use of an entry of the device tier, which may have a copy here."""
        if key is not None and key in self._copies:
            self._copies.move_to_end(key)

    def remove(self, key: ItemKey) -> None:
        """Remove an entry or a copy."""
        entries = self._copies if key in self._copies else self._alone
        self.num_used -= entries.pop(key)

    def choose_victims(self, num_pages: int, is_needed: Callable[[ItemKey], bool]) -> list[ItemKey] | None:
        """Return the entries to remove so that `num_pages` pages are free; None if they cannot be freed.

        Copies are chosen first, because the device tier has the same rows. Entries that `is_needed` names are
        not chosen.
        """
        missing = num_pages - self.num_free
        victims: list[ItemKey] = []
        if num_pages > self.num_pages:
            return None
        for entries in (self._copies, self._alone):
            for key, size in entries.items():
                if missing <= 0:
                    return victims
                if not is_needed(key):
                    victims.append(key)
                    missing -= size
        return victims if missing <= 0 else None
