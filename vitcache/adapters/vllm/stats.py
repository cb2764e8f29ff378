"""`VitCacheStats`: the counters of one report, as vLLM sends them to its loggers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorStats

from vitcache.adapters.vllm.counts import LOWER_TIERS, add_counts

GIB = 1 << 30


@dataclass
class VitCacheStats(ECConnectorStats):
    """Values of `COUNTERS` since the last report. Counters that are 0 are left out.

    Parameters
    ----------
    data
        Values by counter. It is copied, because several loggers of vLLM receive the same dict.

    Raises
    ------
    KeyError
        If a name is not in `COUNTERS`.
    ValueError
        If a value is negative.
    """

    data: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: Mapping[str, float] = self.data
        self.data = {}
        add_counts(self.data, given)

    def reset(self) -> None:
        """Set all counters to 0."""
        self.data = {}

    def aggregate(self, other: ECConnectorStats) -> VitCacheStats:
        """Add the counters of `other`, of another rank or of a later report, and return self."""
        add_counts(self.data, other.data)
        return self

    def is_empty(self) -> bool:
        """Whether all counters are 0."""
        return not self.data

    def reduce(self) -> dict[str, int | float]:
        """Return the numbers of one line of vLLM's log. Numbers of problems are left out if they are 0."""
        device, host, lower = map(self._count, ("hits_device", "hits_host", "hits_lower"))
        encodes = self._count("encodes")
        needed = device + host + lower + encodes
        line: dict[str, int | float] = {
            "Hit rate (%)": round(100 * (device + host + lower) / needed, 1) if needed else 0.0,
            "Device hits": device,
            "Host hits": host,
            "Encodes": encodes,
            "Saved ms": self._ms("saved_seconds_device", "saved_seconds_host", "saved_seconds_lower"),
            "Encode ms": self._ms("encode_seconds"),
            "Loaded GiB": round(self.data.get("load_bytes", 0.0) / GIB, 3),
            "Hidden loads": self._count("loads_hidden"),
            "Exposed loads": self._count("loads_exposed"),
            "Exposed ms": self._ms("load_exposed_seconds"),
            "Demotions": self._count("demotions"),
            "Evictions": self._count("evictions"),
        }
        if lower or self._count("tier_waits"):
            line |= {"Lower tier hits": lower, "Lower tier wait ms": self._ms("tier_wait_seconds")}
        openings = [f"tier_openings_{tier}" for tier in LOWER_TIERS]
        problems = ("refusals", "losses", "deferrals", *openings, "resets")
        return line | {
            name.capitalize().replace("_", " "): self._count(name) for name in problems if self._count(name)
        }

    def _count(self, name: str) -> int:
        return int(self.data.get(name, 0.0))

    def _ms(self, *names: str) -> float:
        return round(1e3 * sum(self.data.get(name, 0.0) for name in names), 1)
