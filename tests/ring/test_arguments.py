"""Sources of a copy: shared memory, memory maps, views, every dtype; and arguments that are refused."""

from __future__ import annotations

import mmap
from multiprocessing import shared_memory

import numpy as np
import pytest
import torch
from placement_cases import same_bits

from vitcache.testing import stand_in


def test_shared_memory_cannot_be_closed_before_it_was_read(ring):
    memory = shared_memory.SharedMemory(create=True, size=4000)
    values = np.ndarray((10, 100), np.float32, buffer=memory.buf)
    values[:] = np.arange(1000).reshape(10, 100)
    dst = torch.zeros(10, 50)
    with stand_in.paused():
        ticket = ring.copy_to(dst, values[:, ::2])
        expected = torch.from_numpy(values[:, ::2].copy())
        del values
        with pytest.raises(BufferError):
            memory.close()
    ticket.synchronize()
    memory.close()
    memory.unlink()
    assert torch.equal(dst, expected)


@pytest.mark.parametrize("make", [np.frombuffer, lambda mapped, dtype: np.ndarray((1024,), dtype, mapped)])
def test_mmap_cannot_be_closed_before_it_was_read(ring, make):
    mapped = mmap.mmap(-1, 4096)
    mapped.write(np.arange(1024, dtype=np.float32).tobytes())
    dst = torch.zeros(1024)
    with stand_in.paused():
        ticket = ring.copy_to(dst, make(mapped, np.float32))
        with pytest.raises(BufferError):
            mapped.close()
    ticket.synchronize()
    mapped.close()
    assert torch.equal(dst, torch.arange(1024, dtype=torch.float32))


def test_copy_to_from_a_tensor_in_shared_memory_writes_equal_values(ring):
    src = torch.randn(33, 7).share_memory_()
    dst = torch.zeros(7, 33)
    ring.copy_to(dst, src.T).wait()
    assert torch.equal(dst, src.T)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::-1, ::-2],
        lambda x: np.broadcast_to(x[:, :1], x.shape),
        lambda x: np.broadcast_to(x[0, 0], (3, 5, 7)),
        lambda x: np.lib.stride_tricks.sliding_window_view(x, 5, axis=1),
        lambda x: x[3:3],
        lambda x: np.asfortranarray(x),
    ],
    ids=["reversed", "broadcast column", "one value", "overlapping", "empty", "fortran"],
)
def test_copy_to_from_an_array_view_writes_equal_values(ring, view):
    for dtype in (np.uint8, np.bool_, np.int16, np.float32, np.float64, np.complex128):
        array = view(np.random.default_rng(0).integers(0, 2, (40, 60)).astype(dtype))
        array.flags.writeable = False
        expected = torch.from_numpy(array.copy())
        dst = torch.empty_like(expected, memory_format=torch.contiguous_format)
        ring.copy_to(dst, array).wait()
        assert torch.equal(dst, expected), dtype


WHOLE = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
FLOATING = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
EIGHT_BITS = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("name", WHOLE + FLOATING + EIGHT_BITS)
def test_copy_to_of_equal_dtypes_copies_every_bit(ring, name):
    src, dst = (torch.empty(37, dtype=getattr(torch, name)) for _ in range(2))
    src.view(torch.uint8).random_(0, 256)
    ring.copy_to(dst, src).wait()
    assert torch.equal(dst.view(torch.uint8), src.view(torch.uint8))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=str)
def test_casts_around_every_16_bit_number_have_torchs_bits(ring, target):
    """The test casts each upper half of a float32 with lower halves that round down, up, and to even."""
    lower = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16) | lower
    src = torch.from_numpy(bits.view(np.float32))
    dst = torch.zeros(src.shape, dtype=target)
    ring.copy_to(dst, src).wait()
    is_nan = src.isnan()
    assert torch.equal(dst.isnan(), is_nan)
    assert same_bits(dst[~is_nan], src.to(target)[~is_nan])


def test_conjugated_source_is_resolved_and_conjugated_destination_is_refused(ring):
    values = torch.tensor([1 + 2j, -3j])
    dst = torch.zeros(2, dtype=torch.complex64)
    ring.copy_to(dst, values.conj()).wait()
    assert dst.tolist() == [1 - 2j, 3j]
    for view in (dst.conj(), dst.conj().imag):
        with pytest.raises(ValueError, match=r"its bytes are not its values|must be contiguous"):
            ring.copy_to(view, torch.zeros(2, dtype=view.dtype))
    assert dst.tolist() == [1 - 2j, 3j]


def test_copy_to_refuses_tensors_that_require_gradients(ring):
    leaf, plain = torch.ones(3, requires_grad=True), torch.zeros(3)
    for name, arguments in (("dst", (leaf, plain)), ("src", (plain, leaf))):
        with pytest.raises(ValueError, match=f"{name} requires gradients"):
            ring.copy_to(*arguments)
        with torch.no_grad():
            ring.copy_to(*arguments).wait()
    with pytest.raises(ValueError, match=r"dst is a torch\.sparse_coo tensor"):
        ring.copy_to(plain.to_sparse(), plain)
