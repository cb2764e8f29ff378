"""`ByteFingerprint` on a GPU: the host waits for nothing, and the N-th check finds a write of a kernel."""

import pytest
import torch
from byte_scene import Weights, checks_until_found, odd_weights, watch


@pytest.mark.parametrize("calls", [2, 5])
def test_check_finds_a_write_to_each_weight_by_the_nth_check_without_a_host_sync(gpu, calls):
    model = odd_weights().to(gpu.device)
    fingerprint, owner = watch(calls, model)
    for name, weight in model.named_buffers():
        if weight.numel() == 0:
            continue
        weight.data.neg_()
        for _ in range(calls):
            with gpu.host_syncs() as waits:
                fingerprint.check(owner)
            gpu.synchronize()
            if owner.changed:  # this check also computed new checksums, for which the host waited
                break
            assert waits == []
        assert owner.changed == [name]
        owner.changed.clear()


def test_check_with_n_1_finds_a_write_queued_on_the_current_stream(gpu):
    model = Weights(weight=torch.ones(gpu.size(3 << 20, 64), device=gpu.device))
    fingerprint, owner = watch(1, model)
    with gpu.stream() as side:
        gpu.slow(50)
        model.weight.data[-1] = 2
        assert checks_until_found(fingerprint, owner, 1) == 1
        side.synchronize()


def test_checks_on_several_streams_raise_no_alarm(gpu):
    model = Weights(weight=torch.randn(gpu.size(3 << 20, 64), device=gpu.device))
    fingerprint, owner = watch(3, model)
    for _ in range(6):
        with gpu.stream():
            gpu.slow(5)
            fingerprint.check(owner)
    gpu.synchronize()
    assert checks_until_found(fingerprint, owner, 6) is None
