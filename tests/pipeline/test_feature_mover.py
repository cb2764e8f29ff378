"""`FeatureMover` with and without a ring; test_features.py tests features through the pipeline."""

import numpy as np
import pytest
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


def test_mover_has_free_bytes_counts_the_bytes_of_the_cast_feature():
    feature = torch.ones(3000)  # 12,000 bytes of float32, 6,000 of bfloat16
    with PinnedRing(1 << 14, backend="host", piece_bytes=1024) as ring, ring.hold():
        cast, uncast = (FeatureMover(torch.device("cpu"), ring, dtype) for dtype in (torch.bfloat16, None))
        assert cast.has_free_bytes(feature)
        assert uncast.has_free_bytes(feature)
        ring.copy_to(torch.zeros(1500), torch.ones(1500))
        assert cast.has_free_bytes(feature)
        assert not uncast.has_free_bytes(feature)
        assert not uncast.has_free_bytes(feature.numpy())
        assert uncast.has_free_bytes(feature.to(torch.bfloat16))


def test_mover_has_free_bytes_for_what_needs_no_ring_and_refuses_what_start_refuses():
    assert FeatureMover(torch.device("cpu"), None, None).has_free_bytes(torch.ones(1 << 20))
    with PinnedRing(1 << 12, backend="host") as ring:
        mover = FeatureMover(torch.device("cpu"), ring, None)
        assert mover.has_free_bytes(["not a tensor"])
        assert mover.has_free_bytes(torch.ones(1 << 20, device="meta"))
        with pytest.raises(TypeError):
            mover.has_free_bytes(np.array([object()]))


def test_mover_has_free_bytes_accepts_every_feature_that_start_accepts():
    wanting, sparse = torch.ones(5, requires_grad=True), torch.eye(3).to_sparse()
    with PinnedRing(1 << 12, backend="host") as ring:
        assert FeatureMover(torch.device("cpu"), ring, None).has_free_bytes(wanting, torch.ones(0))
    mover = FeatureMover(torch.device("cpu"), None, None)
    assert mover.has_free_bytes(wanting, sparse)
    assert mover.start(sparse).ready() is not None


def test_start_into_copies_features_to_the_slices_of_one_tensor(maybe_ring: PinnedRing | None):
    features = [np.full((2, 3), 5.0, np.float32), torch.ones(2, 3), torch.arange(6.0).view(3, 2).T]
    mover = FeatureMover(torch.device("cpu"), maybe_ring, None)
    for context in (torch.inference_mode, torch.enable_grad):
        with context():
            joined = mover.empty((3, 2, 3), torch.bfloat16).fill_(float("nan"))
            assert not joined.is_inference()
            moved = [
                mover.start_into(target, feature) for target, feature in zip(joined, features, strict=True)
            ]
            assert all(
                part.ready().data_ptr() == target.data_ptr()
                for part, target in zip(moved, joined, strict=True)
            )
        expected = torch.stack([torch.as_tensor(feature).bfloat16() for feature in features])
        assert torch.equal(joined, expected)
