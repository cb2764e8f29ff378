"""A feature has one key, in device memory and in host memory."""

import pytest
import torch

from vitcache import KeyThreads, content_key


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64],
    ids=str,
)
def test_content_key_of_a_device_tensor_equals_that_of_its_host_copy(gpu, dtype):
    shape = gpu.size((3600, 1176), (7, 12))
    tensor = (torch.randn(shape) * 100).to(dtype)
    for host in (tensor, tensor.t(), tensor[::2, 1::3], tensor[0, 0], tensor[:0]):
        assert content_key(host.to(gpu.device)) == content_key(host)
    assert content_key(tensor.to(gpu.device)[::2, 1::3]) == content_key(tensor[::2, 1::3].contiguous())
    assert content_key(tensor.to(gpu.device).t()) != content_key(tensor)


def test_content_key_of_device_tensors_in_lists_and_extra_equals_host_copies(gpu):
    tensor = torch.arange(12.0).view(3, 4)
    moved = tensor.to(gpu.device)
    assert content_key([moved, moved], extra={"grid": moved}) == content_key(
        [tensor, tensor], extra={"grid": tensor}
    )


def test_content_key_includes_the_work_queued_before_it(gpu):
    tensor = torch.zeros(gpu.size(1 << 22, 64), device=gpu.device)
    gpu.slow(50)
    tensor += 1
    assert content_key(tensor) == content_key(torch.ones_like(tensor, device="cpu"))


def test_content_key_of_many_blocks_of_any_strides_equals_the_host_copy(gpu):
    tensor = torch.randn(gpu.size((5, 3000, 1536), (5, 7, 12)))
    moved = tensor.to(gpu.device)
    for view in (lambda t: t, lambda t: t[:, ::2], lambda t: t.permute(2, 0, 1), lambda t: t.bfloat16()):
        assert content_key(view(moved), num_threads=2) == content_key(view(tensor))
    pairs = torch.complex(tensor, -tensor)
    assert content_key(pairs.to(gpu.device).conj()) == content_key(pairs.conj())


def test_key_threads_hash_after_the_work_of_the_submitting_stream(gpu):
    with KeyThreads(2) as threads, gpu.stream():
        tensors = [torch.zeros(gpu.size(1 << 22, 64), device=gpu.device) for _ in range(4)]
        gpu.slow(50)
        for tensor in tensors:
            tensor += 1
        futures = [threads.submit(tensor) for tensor in tensors]
        expected = content_key(torch.ones(tensors[0].shape))
        assert [future.result().key for future in futures] == [expected] * 4


def test_key_threads_order_a_loader_s_copy_before_the_submitter_s_later_work(gpu):
    source = torch.arange(gpu.size(1 << 20, 64))

    def load():
        gpu.slow(50)
        return source.to(gpu.device, non_blocking=True) + 1

    with KeyThreads(1) as threads, gpu.stream():
        key, feature = threads.submit(load).result()
        assert torch.equal(feature.cpu(), source + 1)
    assert key == content_key(source + 1)
