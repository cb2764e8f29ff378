"""The policies in plain Python: the order of eviction that the native policies must give."""

from __future__ import annotations

from collections.abc import Callable

from reference_policies.cost_aware import CostAware
from reference_policies.lru import Lru
from reference_policies.s3fifo import S3Fifo
from vitcache.cache.policies import Policy

REFERENCES: dict[str, Callable[[int], Policy]] = {"lru": Lru, "s3fifo": S3Fifo, "cost": CostAware}
