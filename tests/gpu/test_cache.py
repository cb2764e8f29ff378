"""The cache on a GPU: order between streams, pinned memory, and calls that do not block the host."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from caches import make_cache

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.pool import HOST_ALIGNMENT
from vitcache.testing import inspect

PAGE_ROWS = 64
KEYS = [bytes([number]) * 32 for number in range(16)]


def make_entry_cache(gpu, rows, width, *, host_entries=0, entries=1, **options):
    """A cache whose tiers fit these numbers of entries of `rows` rows."""
    pages = -(-rows // PAGE_ROWS)
    sizes = {"width": width, "dtype": torch.bfloat16, "page_rows": PAGE_ROWS}
    return make_cache(entries * pages, host_entries * pages, device=gpu.device, **sizes, **options)


def device_memory(gpu, name):
    """A statistic of torch's allocator; 0 on the CPU, and if the allocator does not cache."""
    return torch.cuda.memory_stats()[name] if tracks_memory(gpu) else 0


def tracks_memory(gpu):
    return not gpu.dry and os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING", "0") == "0"


def make_rows(gpu, rows, width, value):
    return torch.full((rows, width), float(value), dtype=torch.bfloat16, device=gpu.device)


@pytest.fixture(autouse=True, scope="module")
def load_kernels(gpu):
    """Run each kernel and copy once: CUDA loads kernels lazily, and loading may wait for the device."""
    cache = make_entry_cache(gpu, 70, 24, host_entries=1)
    for key in KEYS[:2]:
        cache.put(key, make_rows(gpu, 70, 24, 1))
    for key in KEYS[:2]:
        with cache.get(key) as lease:
            torch.cat([lease.to_tensor()])
    gpu.slow(0)
    gpu.synchronize()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_put_and_lease_on_the_device_give_a_cast_of_the_rows(gpu, dtype):
    rows, width = gpu.size((880, 16384), (70, 24))
    source = torch.randn(rows, width, device=gpu.device, dtype=dtype)
    cache = make_entry_cache(gpu, rows, width)
    assert cache.put(KEYS[0], source)
    expected = source.to(torch.bfloat16, copy=True)
    source.fill_(float("nan"))
    with cache.get(KEYS[0]) as lease:
        found = lease.to_tensor()
    assert found.device.type == gpu.device
    assert torch.equal(found, expected)


def test_cache_default_device_is_the_gpu(gpu):
    device = EmbeddingCache(8, device_bytes=1024, page_rows=1).device
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not gpu.dry:
        assert (
            device == make_entry_cache(gpu, 1, 8).device == torch.device("cuda", torch.cuda.current_device())
        )


def test_importing_the_package_does_not_initialize_cuda(gpu):
    script = "import torch, vitcache.cache, vitcache.keys; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_cache_allocates_its_capacity_and_close_frees_it(gpu):
    rows, width = gpu.size((880, 16384), (70, 24))
    gpu.synchronize()
    if not gpu.dry:
        torch.cuda.empty_cache()  # frees the memory of tensors that earlier tests used on other streams
    before = device_memory(gpu, "requested_bytes.all.current")
    cache = make_entry_cache(gpu, rows, width, entries=4)
    used = device_memory(gpu, "requested_bytes.all.current") - before
    assert used == (cache.stats().device_capacity_bytes if tracks_memory(gpu) else 0)
    cache.put(KEYS[0], make_rows(gpu, rows, width, 1))
    cache.close()
    assert device_memory(gpu, "requested_bytes.all.current") == before


def test_put_and_get_allocate_no_device_memory(gpu):
    rows, width = gpu.size((880, 16384), (70, 24))
    cache = make_entry_cache(gpu, rows, width, entries=2, host_entries=2)
    source = make_rows(gpu, rows, width, 1)
    before = device_memory(gpu, "allocation.all.allocated")
    for key in KEYS[:6]:
        cache.put(key, source)
        with cache.get(key) as lease:
            lease.use()
            lease.segments()
    assert cache.stats().demotions > 0
    assert device_memory(gpu, "allocation.all.allocated") == before


def test_put_and_get_behind_a_slow_stream_do_not_block_the_host(gpu):
    rows, width = gpu.size((880, 16384), (70, 24))
    cache = make_entry_cache(gpu, rows, width, entries=2, host_entries=2)
    sources = [make_rows(gpu, rows, width, number) for number in range(6)]
    gpu.synchronize()
    with gpu.no_host_sync(), gpu.stream() as side:
        spare = [torch.empty_like(source) for source in (*sources, sources[0])]
        del spare  # torch's allocator keeps the memory for the copies below
        gpu.slow(300)
        copies = []
        for key, source in zip(KEYS, sources, strict=False):
            assert cache.put(key, source)
            with cache.get(key) as lease:
                copies.append(lease.to_tensor())
        with cache.get(KEYS[2]) as lease:  # demoted to the host tier
            copies.append(lease.to_tensor())
        assert gpu.is_behind(side)
    gpu.synchronize()
    assert [int(copy[0, 0]) for copy in copies] == [0, 1, 2, 3, 4, 5, 2]
    assert all((copy == copy[0, 0]).all() for copy in copies)


def test_lease_on_another_stream_waits_for_a_slow_put(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache, source = make_entry_cache(gpu, rows, width), make_rows(gpu, rows, width, 5)
    cache.put(KEYS[0], make_rows(gpu, rows, width, 1))
    gpu.synchronize()
    with gpu.stream() as side:
        gpu.slow(100)
        cache.put(KEYS[0], source)
        assert gpu.is_behind(side)
    with cache.get(KEYS[0]) as lease:
        found = lease.to_tensor()
    gpu.synchronize()
    assert (found == 5).all()


def test_put_into_reused_pages_waits_for_a_slow_reader(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache, source = make_entry_cache(gpu, rows, width), make_rows(gpu, rows, width, 2)
    cache.put(KEYS[0], make_rows(gpu, rows, width, 1))
    gpu.synchronize()
    with gpu.stream() as side:
        with cache.get(KEYS[0]) as lease:
            lease.use()
            gpu.slow(100)
            found = torch.cat(lease.segments())
        assert gpu.is_behind(side)
    assert cache.put(KEYS[1], source)
    assert KEYS[0] not in cache
    with cache.get(KEYS[1]) as lease:
        later = lease.to_tensor()
    gpu.synchronize()
    assert (found == 1).all()
    assert (later == 2).all()


def test_put_into_reused_pages_waits_for_a_slow_writer(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width)
    first, second = make_rows(gpu, rows, width, 1), make_rows(gpu, rows, width, 2)
    gpu.synchronize()
    with gpu.stream() as side:
        gpu.slow(100)
        cache.put(KEYS[0], first)
        assert gpu.is_behind(side)
    cache.put(KEYS[1], second)
    gpu.synchronize()
    with cache.get(KEYS[1]) as lease:
        assert (lease.to_tensor() == 2).all()


def test_demotion_waits_for_the_slow_put_of_the_victim(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width, host_entries=1)
    first, second = make_rows(gpu, rows, width, 1), make_rows(gpu, rows, width, 2)
    gpu.synchronize()
    with gpu.stream() as side:
        gpu.slow(100)
        cache.put(KEYS[0], first)
        assert gpu.is_behind(side)
    cache.put(KEYS[1], second)
    with gpu.stream(), cache.get(KEYS[0]) as lease:
        assert lease.pool.device.type == "cpu"
        found = lease.to_tensor()
    gpu.synchronize()
    assert (found == 1).all()


def test_demote_and_write_of_a_lease_behind_a_slow_stream_do_not_block_the_host(gpu):
    rows, width = gpu.size((880, 16384), (70, 24))
    cache = make_entry_cache(gpu, rows, width, entries=2, host_entries=2)
    sources = [make_rows(gpu, rows, width, number) for number in range(2)]
    gpu.synchronize()
    with gpu.no_host_sync(), gpu.stream() as side:
        spare = [torch.empty_like(source) for source in sources]
        del spare  # torch's allocator keeps the memory for the copies below
        gpu.slow(300)
        for key, source in zip(KEYS, sources, strict=False):
            assert cache.put(key, source)
        assert cache.demote(KEYS[0])
        assert cache.copy_to_host(KEYS[1])
        with cache.get(KEYS[0]) as lease, cache.promote(lease, contiguous=True) as reservation:
            assert lease.tier == "host"
            reservation.write(lease)
            assert reservation.commit()
        copies = []
        for key in KEYS[:2]:
            with cache.get(key) as lease:
                assert lease.tier == "device"
                [view] = lease.segments()
                lease.use()
                copies.append(view.clone())
        assert gpu.is_behind(side)
    gpu.synchronize()
    for number, copy in enumerate(copies):
        assert (copy == number).all()


def test_lease_is_written_on_the_default_stream(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width, entries=2, host_entries=1)
    assert cache.put(KEYS[0], make_rows(gpu, rows, width, 3), tier="host")
    for key in KEYS[:2]:
        with cache.get(KEYS[0]) as lease, cache.reserve(key, rows, contiguous=True) as reservation:
            reservation.write(lease)  # from the host tier, then from the device tier
            assert reservation.commit()
    with cache.get(KEYS[1]) as lease:
        assert (lease.to_tensor() == 3).all()


def test_compact_waits_for_slow_readers_and_allocates_no_memory(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width, entries=4)
    for number in range(4):
        assert cache.put(KEYS[number], make_rows(gpu, rows, width, number))
    assert cache.put(KEYS[0], make_rows(gpu, PAGE_ROWS, width, 0))  # frees most of its pages
    gpu.synchronize()
    with gpu.stream() as side:
        with cache.get(KEYS[1]) as lease:
            lease.use()
            gpu.slow(100)
            found = torch.cat(lease.segments())
        assert gpu.is_behind(side)
    before = device_memory(gpu, "allocation.all.allocated")
    with gpu.no_host_sync():
        assert cache.compact()
    assert device_memory(gpu, "allocation.all.allocated") == before
    for number in (1, 2, 3):
        with cache.get(KEYS[number]) as lease:
            assert len(lease.segments()) == 1
            assert (lease.to_tensor() == number).all()
    gpu.synchronize()
    assert (found == 1).all()
    cache.check_integrity()


def test_expect_beside_a_busy_stream_copies_on_the_copy_stream(gpu):
    rows, width = gpu.size((880, 16384), (70, 24))
    cache = make_entry_cache(gpu, rows, width, entries=2, host_entries=2)
    for number in range(2):
        cache.put(KEYS[number], make_rows(gpu, rows, width, number))
    gpu.synchronize()
    timeline = inspect(cache).timeline
    with gpu.stream() as side:
        gpu.slow(300)  # stands for an encode
        cache.expect([rows])
        timeline.wait_on_host(timeline.record(timeline.copy_stream))
        assert gpu.is_behind(side)  # the copy is complete, the encode is not
        cache.put(KEYS[2], make_rows(gpu, rows, width, 2))
    stats = cache.stats()
    assert (stats.writebacks, stats.demotions) == (1, 1)
    for number in range(3):
        with cache.get(KEYS[number]) as lease:
            assert lease.tier == ("device" if number else "host")
            assert (lease.to_tensor() == number).all()


def test_checksum_is_taken_after_a_slow_demotion_and_finds_a_changed_row(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width, host_entries=1, checksum=True)
    with gpu.stream():
        gpu.slow(100)
        cache.put(KEYS[0], make_rows(gpu, rows, width, 1))
        cache.put(KEYS[1], make_rows(gpu, rows, width, 2))
    with cache.get(KEYS[0]) as lease:
        assert (lease.to_tensor() == 1).all()
    gpu.synchronize()
    inspect(cache).entry(KEYS[0], "host").memory.rows[0, 0] = 3
    assert cache.get(KEYS[0]) is None
    assert cache.stats().corruptions == 1


def test_put_of_pinned_rows_lets_the_caller_overwrite_them_at_once(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width)
    source = torch.ones(rows, width, dtype=torch.bfloat16, pin_memory=not gpu.dry)
    gpu.slow(50)
    cache.put(KEYS[0], source)
    source.fill_(float("nan"))
    with cache.get(KEYS[0]) as lease:
        assert (lease.to_tensor() == 1).all()


def test_host_tier_is_pinned_and_stays_pinned_while_a_lease_reads_it(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width, host_entries=3)
    for key in KEYS[:2]:
        cache.put(key, make_rows(gpu, rows, width, 3))
    lease = cache.get(KEYS[0])
    pool = lease.pool
    assert pool.device.type == "cpu"
    aligned_bytes = pool.untyped_storage().nbytes() - cache.stats().host_capacity_bytes
    assert aligned_bytes == 0 if gpu.device != "cpu" else 0 <= aligned_bytes < HOST_ALIGNMENT
    assert pool.is_pinned() != gpu.dry
    cache.close()
    assert (lease.to_tensor() == 3).all()
    assert pool.is_pinned() != gpu.dry


def test_host_tier_that_cannot_be_pinned_raises_and_leaves_no_cuda_error(gpu, monkeypatch):
    if gpu.dry:
        pytest.skip("no memory is pinned on the CPU; tests/pages/test_pinned.py tests the error")
    real = torch.cuda.cudart()

    class LockedTwice:
        def __getattr__(self, name):
            return getattr(real, name)

        def cudaHostRegister(self, address, num_bytes, flags):
            assert real.cudaHostRegister(address, num_bytes, flags) == 0
            status = real.cudaHostRegister(address, num_bytes, flags)
            assert real.cudaHostUnregister(address) == 0
            return status

    monkeypatch.setattr(torch.cuda, "cudart", LockedTwice)
    with pytest.raises(MemoryError, match="cannot page-lock 1048576 bytes; lower host_bytes"):
        EmbeddingCache(64, device_bytes=1 << 20, host_bytes=1 << 20)
    assert torch.ones(4, device=gpu.device).sum().item() == 4


def test_get_by_threads_on_their_own_streams_returns_the_rows_of_the_key(gpu):
    rows, width, steps = gpu.size((200, 2048, 200), (70, 24, 20))
    cache = make_entry_cache(gpu, rows, width, entries=4, host_entries=4)
    sources = [make_rows(gpu, rows, width, number) for number in range(len(KEYS))]
    gpu.synchronize()
    barrier, found, errors = threading.Barrier(3), [], []

    def work(thread):
        try:
            with gpu.stream():
                barrier.wait()
                for step in range(steps):
                    number = (step * 7 + thread * 5) % len(KEYS)
                    lease = cache.get(KEYS[number], num_rows=rows)
                    if lease is None:
                        cache.put(KEYS[number], sources[number])
                        lease = cache.get(KEYS[number], num_rows=rows)
                    if lease is None:  # another thread's put evicted it
                        continue
                    with lease:
                        lease.use()
                        gpu.slow(0.2)
                        found.append((number, lease.to_tensor().sum(dtype=torch.float64)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gpu.synchronize()
    assert errors == []
    assert found
    cache.check_integrity()
    assert [total.item() for _, total in found] == [number * rows * width for number, _ in found]


@pytest.mark.parametrize("tier", ["host", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_put_in_the_host_tier_behind_a_slow_stream_does_not_block_the_host(gpu, tier, dtype):
    rows, width = gpu.size((880, 16384), (70, 24))
    cache = make_entry_cache(gpu, rows, width, host_entries=1)
    for value in (1, 2):  # the second put reuses the pages of the first
        source = make_rows(gpu, rows, width, value).to(dtype)
        gpu.synchronize()
        with gpu.stream() as side:
            gpu.slow(100)
            assert cache.put(KEYS[value], source, tier=tier)
            assert gpu.is_behind(side)
            source.fill_(float("nan"))
        if tier == "both":
            cache.put(KEYS[0], make_rows(gpu, rows, width, 0))  # demotes the entry without a copy
        with gpu.stream(), cache.get(KEYS[value]) as lease:
            assert lease.tier == "host"
            found = lease.to_tensor()
        gpu.synchronize()
        assert (found == value).all()
    cache.check_integrity()


def test_put_of_cpu_rows_in_the_host_tier_waits_for_a_slow_reader(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width, host_entries=1)
    cache.put(KEYS[0], make_rows(gpu, rows, width, 1).cpu(), tier="host")
    with gpu.stream():
        gpu.slow(100)
        with cache.get(KEYS[0]) as lease:
            found = lease.to_tensor()
    assert cache.put(KEYS[1], make_rows(gpu, rows, width, 2).cpu(), tier="host")
    with cache.get(KEYS[1]) as lease:
        later = lease.to_tensor()
    gpu.synchronize()
    assert (found == 1).all()
    assert (later == 2).all()


def test_narrow_rows_keep_their_bits_in_both_tiers(gpu):
    rows, width = gpu.size((880, 4096), (70, 24))
    cache = make_entry_cache(gpu, rows, width, host_entries=2, checksum=True)
    for divisor in (1, 2, 4):
        narrow = torch.randn(rows, width // divisor, dtype=torch.bfloat16, device=gpu.device)
        assert cache.put(KEYS[divisor], narrow, tier="both")
        with cache.get(KEYS[divisor], num_rows=rows, row_width=width // divisor) as lease:
            assert lease.tier == "device"
            assert torch.equal(lease.to_tensor(), narrow)
        assert cache.put(KEYS[0], make_rows(gpu, rows, width, 0))  # demotes the narrow rows
        with cache.get(KEYS[divisor]) as lease, cache.promote(lease) as reservation:
            assert (lease.tier, lease.row_width) == ("host", width // divisor)
            reservation.write(lease.to_tensor())
            promoted = reservation.commit_lease()
            assert torch.equal(promoted.to_tensor(), narrow)
            promoted.release()
        assert cache.discard(KEYS[divisor])
    cache.check_integrity()
