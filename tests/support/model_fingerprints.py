"""Compares fingerprints of a model."""

from __future__ import annotations

from vitcache.adapters.weights import WeightsFingerprint


def are_equal(before: WeightsFingerprint, after: WeightsFingerprint) -> bool:
    """Whether weights, methods, settings and hooks look the same in both fingerprints."""
    return after.change_since(before) is None and not after.setting_changes_since(before)
