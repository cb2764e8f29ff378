"""`FeatureMover` with and without a ring; test_features.py tests features through the pipeline."""

import torch

from vitcache import PinnedRing
from vitcache.pipeline.feature_mover import FeatureMover


def test_mover_detaches_a_feature_that_requires_gradients():
    feature = torch.randn(5, 3, requires_grad=True)
    with PinnedRing(1 << 16, backend="host") as ring:
        for mover in (
            FeatureMover(torch.device("cpu"), maybe_ring, torch.bfloat16) for maybe_ring in (ring, None)
        ):
            moved = mover.start(feature).ready()
            assert not moved.requires_grad
            assert torch.equal(moved, feature.detach().bfloat16())
