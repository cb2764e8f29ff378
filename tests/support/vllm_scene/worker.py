"""A plain model of a worker: keys in place of pages. Raises where a real worker would lose rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vitcache.adapters.vllm.orders import ItemKey, StepOrders, StepReport
from vitcache.adapters.vllm.settings import Settings

Content = tuple[str, str, int, int]  # salt of the encode, identifier, rows, epoch of the weights


class Broken(AssertionError):
    """The inventory gave an order that a worker cannot execute."""


@dataclass
class WorkerModel:
    """One rank: entries by tier, and vLLM's encoder cache."""

    settings: Settings
    refuses: Callable[[ItemKey], bool] = lambda key: False
    device: dict[ItemKey, Content] = field(default_factory=dict)
    host: dict[ItemKey, Content] = field(default_factory=dict)
    shown: dict[str, ItemKey] = field(default_factory=dict)
    dropped: dict[str, Content] = field(default_factory=dict)  # and still shown, so their pages are in use
    rows: dict[str, Content] = field(default_factory=dict)  # vLLM's dict
    epoch: int = 0
    num_loads: int = 0
    disk: dict[ItemKey, Content] | None = None
    fetch_pages: int = 0  # beside the host tier
    num_fetching: int = 0  # of these and of those of the host tier, pages of fetches that have not ended
    orders: StepOrders = field(default_factory=StepOrders)

    def begin(self, orders: StepOrders) -> None:
        self.orders = orders
        self.report = StepReport(orders.step, orders.epoch)
        if orders.epoch != self.epoch:
            self.epoch = orders.epoch
            for identifier in self.shown:
                self.rows.pop(identifier, None)
            self.device, self.host, self.shown, self.dropped = {}, {}, {}, {}
        for identifier in orders.releases:
            self.release(identifier)
        for key in orders.host_drops:
            self.host.pop(key, None)  # a refused save made no copy
        for key in orders.drops:
            if self.shown.get(key.identifier) == key and key in self.device:
                self.dropped[key.identifier] = self.device[key]
            self.device.pop(key, None)
            self.host.pop(key, None)
        for key in orders.demotions:
            if key not in self.device:
                self.report.missing.add(key)
                continue
            self._check(key not in self.shown.values(), f"{key} is shown")
            self.host[key] = self.device.pop(key)
        self.check_pages()
        for identifier in orders.saves:
            self.rows.pop(identifier, None)
            self.release(identifier)
        for identifier, order in orders.loads.items():
            self._check(order.key in self.host, f"{order.key} is to be loaded and is in no tier")
            self._check(self.host[order.key][2] == order.num_rows, f"{order.key} has other rows")
            self.device[order.key] = self.host[order.key]
            self.show(identifier, order.key)
            self.num_loads += 1
        self.check_pages()

    def encode(self, identifier: str, content: Content, *, is_v2: bool) -> None:
        """Run the encoder for an item, and save its rows, as a model runner does."""
        if is_v2 and identifier in self.rows:
            return
        self.rows[identifier] = content
        order = self.orders.saves.get(identifier)
        if order is None or order.key in self.report.saved or self.refuses(order.key):
            return
        self.host.pop(order.key, None)  # late rows of the disk
        self.device[order.key] = content
        if order.to_host:
            self.host[order.key] = content
        self.show(identifier, order.key)
        self.report.saved.add(order.key)
        self.check_pages()

    def place(self, windows: object) -> None:
        """Do nothing: vLLM's merge reads the rows."""

    def shows(self, identifier: str, expected: tuple[str, int, int]) -> bool:
        """Whether vLLM's encoder cache has (identifier, rows, epoch of the weights)."""
        return self.rows[identifier][1:] == expected

    def release(self, identifier: str) -> None:
        self.shown.pop(identifier, None)
        self.dropped.pop(identifier, None)

    def show(self, identifier: str, key: ItemKey) -> None:
        self.shown[identifier] = key
        self.rows[identifier] = self.device[key]

    def end(self) -> StepReport | None:
        for key in self.orders.offers:
            if key in self.device:
                self.host[key] = self.device[key]
                self.check_pages()
            if self.disk is not None and key in self.host:
                self.disk[key] = self.host[key]
        has_news = self.orders.saves or self.orders.loads or self.report.missing
        return self.report if has_news else None

    def check_pages(self) -> None:
        """Raise `Broken` if a tier contains more than its pages."""
        pages = self.settings.pages_for
        device = sum(pages(content[2]) for content in (*self.device.values(), *self.dropped.values()))
        host = sum(pages(content[2]) for content in self.host.values()) + self.num_fetching
        for name, used, most in (
            ("device", device, self.settings.device_pages),
            ("host", host, self.settings.host_pages + self.fetch_pages),
        ):
            self._check(used <= most, f"{used} {name} pages are used, there are {most}")

    def _check(self, is_right: bool, message: str) -> None:
        if not is_right:
            raise Broken(f"step {self.orders.step}: {message}")
