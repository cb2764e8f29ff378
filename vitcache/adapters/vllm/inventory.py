"""The scheduler's inventory: which rows each worker has, in which tier, and its next orders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from vitcache.adapters.vllm.counts import Counts
from vitcache.adapters.vllm.host_tier import HostTier
from vitcache.adapters.vllm.in_flight import StepsInFlight
from vitcache.adapters.vllm.orders import ItemKey, LoadOrder, SaveOrder, StepOrders, StepReport
from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.tier_fetches import Item, TierFetches

logger = logging.getLogger("vitcache.adapters.vllm")

# A request waits in vain at most so often for the report of a save. Then its item is encoded again.
MOST_DEFERRALS = 1000
# An entry is offered to the tiers below the host tier at this hit, and again at twice as many, four times as
# many and so on: the worker offers it once, unless they were busy.
OFFERED_HITS = 2


class EncoderCacheOwner(Protocol):
    """vLLM's encoder cache as the scheduler sees it: `VitCacheManager`."""

    def forget(self, identifier: str) -> set[str]:
        """Drop the rows of an identifier. Return the requests that use them."""

    def reset(self) -> None:
        """Forget all rows, also those of the inventory."""


class InventoryEntry:
    """The rows of one item in the workers' pages."""

    __slots__ = (
        "deferrals",
        "hits",
        "is_fetched",
        "num_pages",
        "num_rows",
        "on_device",
        "on_host",
        "saved_in",
        "step",
    )

    def __init__(self, num_rows: int, num_pages: int, step: int) -> None:
        self.num_rows = num_rows
        self.num_pages = num_pages
        self.on_device = True
        self.on_host = False
        self.step = step  # of the last order that needs the rows: they are not dropped in this step
        self.saved_in: int | None = step  # None: every rank has reported the save
        self.deferrals = 0
        self.hits = 0
        self.is_fetched = False  # from a lower tier, and not needed yet


class Inventory:
    """Decides which rows the workers keep. The workers evict nothing by themselves.

    vLLM's encoder cache is the device tier: `VitCacheManager` bounds its pages, and evicts from it. An
    evicted entry moves to the host tier, and is loaded from there when a request needs it again. If the host
    tier is full, it first drops copies of entries that are in the device tier, too, and then its least
    recently used entries.

    Parameters
    ----------
    settings
        Sizes of the tiers.
    shares_saves
        Whether a request may read rows that another request encodes in the same step. It must not if the pass
        can still preempt the other one, whose items are not encoded then (vLLM's policy "priority").

    Rows of a lower tier, below the host tier, enter the host tier before a pass needs them: `fetches` fetches
    them while their request waits in the queue, for a bounded time. Then they are loaded as other entries of
    the host tier.

    Attributes
    ----------
    owner
        The manager of vLLM's encoder cache.
    fetches
        The fetches from the tiers below the host tier. None: without such tiers.
    counts
        Counters since the last report to vLLM.

    Notes
    -----
    Only the scheduler's thread may call. One pass of the scheduler calls, for each request, `admit`, for each
    of its items `ask`, `has` and `allocate`, and at its end `close_step`. Reports may arrive several passes
    later (asynchronous scheduling): until the report of its save, an entry is in the inventory, but is not
    loaded.
    """

    def __init__(self, settings: Settings, *, shares_saves: bool = True) -> None:
        self.settings = settings
        self._shares_saves = shares_saves
        self.owner: EncoderCacheOwner | None = None
        self.fetches: TierFetches | None = None
        self.counts = Counts()
        self._encode_seconds = 0.0
        self._encoded_rows = 0
        self._epoch = -1
        self._step = 0
        self._failed: set[str] = set()
        self._in_flight = StepsInFlight()
        self._seen: dict[str, set[int]] = {}  # request -> its items that were counted
        self.reset()

    def reset(self) -> None:
        """Forget all entries. The workers drop them before the next step."""
        self._epoch += 1
        self._entries: dict[ItemKey, InventoryEntry] = {}
        self._resident: dict[str, ItemKey] = {}  # entries that vLLM's encoder cache shows
        self._host = HostTier(self.settings.host_pages)
        self._orders = StepOrders(epoch=self._epoch)
        self._salt = ""  # of the last request of `admit`
        self._asked: tuple[ItemKey, int] | None = None  # the item of `has`, and its rows
        self._promised: set[ItemKey] = set()  # `has` was true in this pass
        self._savers: dict[str, list[str]] = {}  # request -> identifiers that it is to encode in this pass
        # Their numbers are unique, so the steps before and after a reset cannot be mixed up.
        self._in_flight.reset(self._step)
        self._num_waiting = 0  # entries that were evicted before the report of their save
        self._has_polled = False  # for ends of fetches, in this pass
        if self.fetches is not None:
            self.fetches.reset()

    # One pass of the scheduler

    def admit(self, request: Any, num_computed_tokens: int) -> bool:
        """Return False if a request must wait: for the save of an item, its report, or a lower tier."""
        is_fetched = self.fetches is None or self._is_fetched(self.fetches, request, num_computed_tokens)
        return self._is_saved(request, num_computed_tokens) and is_fetched

    def _is_saved(self, request: Any, num_computed_tokens: int) -> bool:
        """Return False if a request must wait until an item is saved, or for the report of the save."""
        salt = self._salt = salt_of(request)
        saves = {} if self._shares_saves else self._orders.saves
        if not self._num_waiting and not saves:
            return True
        for index, feature in enumerate(request.mm_features):
            position = feature.mm_position
            if position.offset + position.length <= num_computed_tokens:
                continue
            if feature.identifier in saves:
                self.counts.add("deferrals")
                return False
            entry = self._entries.get(ItemKey(salt, feature.identifier))
            if entry is None or entry.saved_in is None or entry.on_device:
                continue
            if entry.num_rows != request.get_num_encoder_embeds(index):
                continue
            entry.deferrals += 1
            if entry.deferrals <= MOST_DEFERRALS:
                self.counts.add("deferrals")
                return False
        return True

    def ask(self, request: Any, index: int) -> None:
        """Note the item that `has` is asked for next. Items of one request may have equal identifiers."""
        key = ItemKey(salt_of(request), request.mm_features[index].identifier)
        self._asked = (key, request.get_num_encoder_embeds(index))

    def has(self, identifier: str) -> bool:
        """Whether the workers have the rows of the item of the last `ask`.

        For another identifier: whether they have rows of any number for the request that was admitted last.
        """
        key, num_rows = self._asked or (None, None)
        if key is None or key.identifier != identifier:
            key, num_rows = ItemKey(self._salt, identifier), None
        entry = self._entries.get(key)
        if entry is None or num_rows not in (None, entry.num_rows):
            return False
        if self._resident.get(identifier) == key:
            # Evicted from vLLM's encoder cache in this pass, so the workers have not released the rows.
            return entry.saved_in != self._step
        if entry.saved_in is not None or not entry.on_host:
            return False
        self._promised.add(key)
        return True

    def allocate(self, request: Any, index: int) -> None:
        """Order the load or the save of an item for which vLLM's encoder cache has allocated pages."""
        feature = request.mm_features[index]
        identifier: str = feature.identifier
        key = ItemKey(salt_of(request), identifier)
        num_rows = request.get_num_encoder_embeds(index)
        self._seen.setdefault(request.request_id, set()).add(index)
        self._in_flight.add_reader(self._step, identifier, request.request_id)
        self._orders.reads_items = True
        entry = self._entries.get(key)
        is_same = entry is not None and entry.num_rows == num_rows
        if identifier in self._resident:
            if entry is not None and is_same and self._resident[identifier] == key:
                if entry.saved_in != self._step:
                    self._count_hit("device", feature, num_rows)
                self._use(key, entry)
                return
            self._release(identifier)  # other rows are needed under this identifier
            entry = self._entries.get(key)
        self._resident[identifier] = key
        if entry is not None and is_same and entry.on_host and entry.saved_in is None:
            self._count_hit("lower" if entry.is_fetched else "host", feature, num_rows)
            if not entry.is_fetched:
                self._use(key, entry)
            entry.is_fetched = False
            self._load(identifier, key, entry)
            self._in_flight.add_load(self._step, identifier, request.request_id)
        else:
            self._save(identifier, key, num_rows, self.pages_of(request, index))
            self._savers.setdefault(request.request_id, []).append(identifier)

    def preempt(self, request: Any) -> None:
        """Cancel the saves that the present pass has ordered for a request: it is not scheduled after all."""
        for identifier in self._savers.pop(request.request_id, ()):
            if self.owner is not None:
                self.owner.forget(identifier)
            self._release(identifier)

    def hit(self, request: Any, index: int) -> None:
        """Count an item that vLLM's encoder cache contains, once per request."""
        feature = request.mm_features[index]
        self._in_flight.add_reader(self._step, feature.identifier, request.request_id)
        self._orders.reads_items = True
        seen = self._seen.setdefault(request.request_id, set())
        if index not in seen:
            seen.add(index)
            key = self._resident.get(feature.identifier)
            self._host.touch(key)
            self._use(key, None if key is None else self._entries.get(key))
            self._count_hit("device", feature, request.get_num_encoder_embeds(index))

    def close_step(self, freed: Iterable[str], is_executed: bool) -> StepOrders | None:
        """End a pass. Return the orders for the workers, or None if the step is not executed.

        Parameters
        ----------
        freed
            Identifiers that vLLM's encoder cache evicted in this pass.
        is_executed
            Whether the step schedules tokens. vLLM's Model Runner V1 does not call the connector in other
            steps, so their orders are added to the next ones.
        """
        for identifier in freed:
            self._release(identifier)
        self._promised.clear()
        self._savers.clear()
        self._asked, self._salt = None, ""
        self._has_polled = False
        if not is_executed:
            return None
        orders, self._orders = self._orders, StepOrders(epoch=self._epoch)
        orders.step = self._step
        self.counts.add("encodes", len(orders.saves))
        self._step += 1
        if self.fetches is not None:
            self.fetches.close_step()
        return orders

    # Between the passes

    def report(self, report: StepReport) -> None:
        """Take in the report of a step: of the next step that has none yet, or of a later one."""
        self.counts.add_all(report.counts)
        self._encode_seconds += report.counts.get("encode_seconds", 0.0)
        self._encoded_rows += report.encoded_rows
        is_old = report.epoch != self._epoch  # of a step before a reset: only its requests matter
        for step, key in self._in_flight.take_saves(report.step):
            self._end_save(key, step, step == report.step and key in report.saved)
        for key in report.missing:
            entry = self._entries.get(key)
            if entry is not None and not is_old and not entry.on_device and entry.saved_in is None:
                logger.error(
                    "a worker lacks %d rows that it was to demote: they are encoded again", entry.num_rows
                )
                self._drop(key, entry)
        for identifier, requests in self._in_flight.take_loads(report.step):
            if identifier in report.lost:
                self._fail(identifier, requests if is_old else requests | self._forget(identifier))
        if report.is_cleared:
            logger.warning(
                "a worker's encoder cache was cleared without reset_encoder_cache: its requests fail"
            )
            self._failed |= self._in_flight.readers_since(report.step)
            if self.owner is not None and not is_old:
                self.owner.reset()

    def take_failed(self) -> set[str]:
        """Return the requests that used rows which a worker has lost, and forget them."""
        failed, self._failed = self._failed, set()
        return failed

    def fail_too_large(self, request: Any, index: int) -> None:
        """Fail a request with an item that the device tier cannot contain."""
        if request.request_id in self._failed:
            return
        self._failed.add(request.request_id)
        logger.error(
            "request %s fails: its item %d has %d rows, which need %d pages; device_bytes is %d: %d pages",
            request.request_id,
            index,
            request.get_num_encoder_embeds(index),
            self.pages_of(request, index),
            self.settings.device_bytes,
            self.settings.shown_pages,
        )

    def finish(self, request: Any) -> None:
        """Forget a finished request."""
        self._seen.pop(request.request_id, None)
        if self.fetches is not None:
            self.fetches.finish(request.request_id)

    def take_counts(self) -> dict[str, float]:
        """Return the counters since the last call."""
        if self.fetches is not None:
            self.fetches.count()
        return self.counts.take()

    def pages_of(self, request: Any, index: int) -> int:
        """Return how many pages an item occupies in a tier."""
        modality = getattr(request.mm_features[index], "modality", "")
        return self.settings.pages_for(
            request.get_num_encoder_embeds(index), self.settings.width_of(modality)
        )

    # Parts: the lower tiers

    def _is_fetched(self, fetches: TierFetches, request: Any, num_computed_tokens: int) -> bool:
        """Return False if a request must wait for a lower tier."""
        if not self._has_polled:
            self._has_polled = True
            for item, is_found in fetches.take_ended():
                if is_found:
                    self._enter(fetches, item)
        if fetches.is_settled(request.request_id):
            return True
        if not fetches.admit(request.request_id, self._lacking(request, num_computed_tokens)):
            return False
        salt = salt_of(request)
        for feature in request.mm_features:  # vLLM's prefix cache has used these
            position = feature.mm_position
            if position.offset + position.length <= num_computed_tokens:
                key = ItemKey(salt, feature.identifier)
                self._use(key, self._entries.get(key))
        return True

    def _lacking(self, request: Any, num_computed_tokens: int) -> Iterator[Item]:
        """Yield the items of a request that neither the workers have nor this pass encodes."""
        salt = salt_of(request)
        for index, feature in enumerate(request.mm_features):
            position = feature.mm_position
            key = ItemKey(salt, feature.identifier)
            if (
                position.offset + position.length > num_computed_tokens
                and feature.identifier not in self._resident
                and key not in self._entries
                and key not in self._orders.drops  # the worker may have rows of another number
            ):
                width = self.settings.width_of(getattr(feature, "modality", ""))
                num_pages = self.pages_of(request, index)
                yield Item(key, request.get_num_encoder_embeds(index), width, num_pages)

    def _enter(self, fetches: TierFetches, item: Item) -> None:
        """Count fetched rows in the host tier, or order to drop them."""
        key = item.key
        if key in self._orders.drops:
            fetches.free(item, is_ordered=True)
        elif key in self._entries:  # it was encoded in the meantime, and the rows are in the way
            if not self._entries[key].on_host:
                self._orders.host_drops[key] = None
            fetches.free(item, is_ordered=True)
        elif not self._make_room(item.num_pages):
            self._orders.drops[key] = None
            fetches.free(item, is_ordered=True)
        else:
            entry = self._entries[key] = InventoryEntry(item.num_rows, item.num_pages, -1)
            entry.on_device, entry.on_host, entry.saved_in, entry.is_fetched = False, True, None, True
            self._host.add_alone(key, item.num_pages)
            fetches.free(item, is_ordered=bool(self._orders.drops or self._orders.host_drops))

    def _use(self, key: ItemKey | None, entry: InventoryEntry | None) -> None:
        """Count a hit, and order to offer the entry to the lower tiers if it was needed often enough."""
        if self.fetches is None or key is None or entry is None:
            return
        entry.hits += 1
        number = entry.hits // OFFERED_HITS
        if entry.hits == number * OFFERED_HITS and number & (number - 1) == 0:
            self._offer(key, entry)

    def _offer(self, key: ItemKey, entry: InventoryEntry) -> None:
        """Order to offer an entry, which the threads of the lower tiers read in the host tier.

        An entry without a host copy gets one in place of other copies. If these are too few, the entry is
        offered when it is demoted.
        """
        if not entry.on_host:
            if not self._make_room(entry.num_pages, only_copies=True):
                return
            entry.on_host = True
            self._host.add_copy(key, entry.num_pages)
        self._orders.offers[key] = None

    # Parts: the tiers

    def _load(self, identifier: str, key: ItemKey, entry: InventoryEntry) -> None:
        entry.on_device = True
        entry.step = self._step
        self._host.keep_as_copy(key)
        self._orders.loads[identifier] = LoadOrder(key, entry.num_rows)

    def _save(self, identifier: str, key: ItemKey, num_rows: int, num_pages: int) -> None:
        old = self._entries.get(key)
        if old is not None:
            self._drop(key, old)
        entry = self._entries[key] = InventoryEntry(num_rows, num_pages, self._step)
        if num_pages <= self._host.num_free:
            entry.on_host = True
            self._host.add_copy(key, num_pages)
        self._orders.saves[identifier] = SaveOrder(key, num_rows, num_pages, entry.on_host)
        self._in_flight.add_save(self._step, key)

    def _release(self, identifier: str) -> None:
        """Evict an item from the device tier, as vLLM's encoder cache no longer contains it."""
        key = self._resident.pop(identifier, None)
        self._orders.releases.append(identifier)
        entry = None if key is None else self._entries.get(key)
        if key is None or entry is None or not entry.on_device:
            return
        entry.on_device = False
        if self._orders.loads.pop(identifier, None):  # ordered in this pass, and not needed after all
            self._in_flight.cancel_load(self._step, identifier)
            self._host.keep_alone(key)
            return
        if self._orders.saves.pop(identifier, None):
            self._in_flight.cancel_save(self._step, key)
            self._num_waiting += 1
            self._drop(key, entry)
            return
        self._num_waiting += entry.saved_in is not None
        if entry.on_host:
            self._host.keep_alone(key)
        elif self._make_room(entry.num_pages):
            entry.on_host = True
            self._host.add_alone(key, entry.num_pages)
            if entry.hits >= OFFERED_HITS:
                self._orders.offers[key] = None
        else:
            self._drop(key, entry)
            self.counts.add("evictions")
            return
        self._orders.demotions[key] = None

    def _make_room(self, num_pages: int, *, only_copies: bool = False) -> bool:
        """Free host pages. Return False, and drop nothing, if too few can be freed in this step."""
        is_needed = self._is_no_copy_or_needed if only_copies else self._is_needed
        victims = self._host.choose_victims(num_pages, is_needed)
        if victims is None:
            return False
        for key in victims:
            entry = self._entries[key]
            if entry.on_device:
                self._host.remove(key)
                entry.on_host = False
                self._orders.host_drops[key] = None
                self._orders.offers.pop(key, None)  # which would copy the rows again
            else:
                self._drop(key, entry)
                self.counts.add("evictions")
        return True

    def _is_needed(self, key: ItemKey) -> bool:
        """Whether the rows of an entry are read or written in this step."""
        return key in self._promised or self._entries[key].step == self._step

    def _is_no_copy_or_needed(self, key: ItemKey) -> bool:
        return not self._entries[key].on_device or self._is_needed(key)

    def _drop(self, key: ItemKey, entry: InventoryEntry) -> None:
        """Remove an entry from the inventory, and order the workers to drop it."""
        del self._entries[key]
        if entry.on_host:
            self._host.remove(key)
        self._num_waiting -= entry.saved_in is not None and not entry.on_device
        self._orders.demotions.pop(key, None)
        self._orders.host_drops.pop(key, None)
        self._orders.offers.pop(key, None)
        self._orders.drops[key] = None

    def _end_save(self, key: ItemKey, step: int, is_saved: bool) -> None:
        entry = self._entries.get(key)
        if entry is None or entry.saved_in != step:
            return  # dropped, or saved again in a later step
        if not is_saved:
            self.counts.add("refusals")
            self._drop(key, entry)
            return
        entry.saved_in = None
        self._num_waiting -= not entry.on_device

    def _forget(self, identifier: str) -> set[str]:
        """Drop the rows of an identifier that a worker has lost. Return the requests that use them."""
        key = self._resident.get(identifier)
        entry = None if key is None else self._entries.get(key)
        if key is not None and entry is not None:
            self._drop(key, entry)
        return self.owner.forget(identifier) if self.owner else set()

    def _fail(self, identifier: str, requests: set[str]) -> None:
        """Fail the requests that were given zeros for an item that a worker has lost."""
        self.counts.add("losses")
        self._failed |= requests
        logger.error(
            "a worker lost the rows of %r: the requests %s fail, the next one encodes the item again",
            identifier,
            sorted(requests),
        )

    def _count_hit(self, tier: str, feature: Any, num_rows: int) -> None:
        width = self.settings.width_of(getattr(feature, "modality", ""))
        self.counts.add(f"hits_{tier}")
        self.counts.add(f"hit_bytes_{tier}", num_rows * width * self.settings.dtype.itemsize)
        if self._encoded_rows:
            self.counts.add(f"saved_seconds_{tier}", num_rows * self._encode_seconds / self._encoded_rows)


def salt_of(request: Any) -> str:
    """Return the `cache_salt` of a request, "" if it has none."""
    return getattr(request, "cache_salt", None) or ""
