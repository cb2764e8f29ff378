"""A feature has the same key wherever it lies."""

import pytest
import torch

from vitcache.keys import content_key


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64],
    ids=str,
)
def test_a_tensor_on_the_device_has_the_key_of_its_copy_on_the_host(gpu, dtype):
    shape = gpu.size((3600, 1176), (7, 12))
    tensor = (torch.randn(shape) * 100).to(dtype)
    for host in (tensor, tensor.t(), tensor[::2, 1::3], tensor[0, 0], tensor[:0]):
        assert content_key(host.to(gpu.device)) == content_key(host)
    assert content_key(tensor.to(gpu.device)[::2, 1::3]) == content_key(tensor[::2, 1::3].contiguous())
    assert content_key(tensor.to(gpu.device).t()) != content_key(tensor)


def test_extra_and_lists_of_device_tensors_have_the_keys_of_their_copies(gpu):
    tensor = torch.arange(12.0).view(3, 4)
    moved = tensor.to(gpu.device)
    assert content_key([moved, moved], extra={"grid": moved}) == content_key(
        [tensor, tensor], extra={"grid": tensor}
    )


def test_hashing_sees_the_work_that_is_queued_before_it(gpu):
    tensor = torch.zeros(gpu.size(1 << 22, 64), device=gpu.device)
    gpu.slow(50)
    tensor += 1
    assert content_key(tensor) == content_key(torch.ones_like(tensor, device="cpu"))
