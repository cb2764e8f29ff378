"""Features at the seam between the pipeline and the ring; the rest is in test_features.py."""

import torch

from vitcache import PinnedRing
from vitcache.pipeline.feature_mover import FeatureMover


def test_a_feature_that_requires_gradients_is_moved_without():
    feature = torch.randn(5, 3, requires_grad=True)
    with PinnedRing(1 << 16, backend="host") as ring:
        for mover in (FeatureMover(torch.device("cpu"), r, torch.bfloat16) for r in (ring, None)):
            moved = mover.start(feature).ready()
            assert not moved.requires_grad
            assert torch.equal(moved, feature.detach().bfloat16())
