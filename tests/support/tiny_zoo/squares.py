"""Members of the zoo, to come."""

from __future__ import annotations

from tiny_zoo.zoo_model import ZooModel

SQUARES: list[ZooModel] = []
