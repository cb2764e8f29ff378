"""Claim: the ring copies pageable features to the device near the speed of the bus, and hides the copy.

On a GPU the ring is compared with ``.to()`` from pageable memory, with ``.pin_memory().to()``, and with
``.to()`` from pinned memory, which is the ceiling. The ring is measured by threads, piece size, cast and
number of producers, and then while a stack of matrix products runs in place of a vision tower.

Without a GPU, the stand-in for the CUDA runtime copies every byte a second time. So the bench also measures
the fill alone, against torch's copy on this machine with the same number of threads.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcache import PinnedRing
from vitcache.bench.claims.producers import producers
from vitcache.bench.claims.ring_figure import draw as draw
from vitcache.bench.harness.blocked_stream import blocked_stream
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer, gb_per_s
from vitcache.ring.pinned_ring import default_num_threads

NAME = "ring"
CLAIMS_CPU = True
# Targets of the design on a GPU: the share of the ceiling's speed with 12 threads; the speed of two threads
# divided by that of one.
CEILING_SHARE, JUDGED_THREADS, TWO_OVER_ONE = 0.75, 12, 1.8
# Targets without a GPU: shares of the speed of torch's copy, for the fill alone, and for fill and copy.
FILL_SHARE, BOTH_SHARE = 0.9, 0.45
JUDGED_BYTES = 64 << 20  # smaller features fit in the CPU's last-level cache
FEW_LAYERS = 2  # short enough to repeat on a CPU, where the bench only shows that the overlap works


@dataclass(frozen=True)
class RingCase:
    """A float32 feature ``(rows, width)``.

    `layers` is the depth of the tower that runs during the copy, `constructed_bytes` the capacity of the ring
    whose construction is timed, and `producers` the numbers of threads that copy together.
    """

    name: str
    rows: int
    width: int
    layers: int
    constructed_bytes: int = 1 << 30
    producers: tuple[int, ...] = (1, 2, 4, 8)

    @property
    def num_bytes(self) -> int:
        """The bytes of the feature."""
        return self.rows * self.width * 4


# A patch of Qwen-VL has 16 x 16 x 3 x 2 float32 values; 1280x720 pixels give 80 x 45 patches.
CASES = {
    "full": [
        RingCase("1280x720", 3_600, 1536, 32),
        RingCase("4x2560x1440", 4 * 14_400, 1536, 32),
    ],
    "smoke": [RingCase("tiny", 50, 64, 2, 1 << 20, (1, 2))],
}


def run_case(case: RingCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    device, on_gpu = timer.device, timer.device.type == "cuda"
    src = torch.randn(case.rows, case.width)
    dst = torch.empty_like(src, device=device)
    yield "construction"
    add_construction(case, recorder, timer)
    with ExitStack() as rings:
        yield "copies, in turns"
        contenders = {
            **stock_copies(src, dst),
            **ring_copies(case, src, dst, rings),
        }
        for name, copy in contenders.items():
            check(name, copy, dst, src)
        add_copies(case, recorder, timer, contenders)
        yield "producers"
        add_producers(case, recorder, timer, src, dst)
        yield "casts"
        add_casts(case, recorder, timer, src, rings)
        if not on_gpu:
            yield "filling alone"
            add_fills(case, recorder, timer, src, dst)
        if on_gpu or case.layers <= FEW_LAYERS:
            yield "beside a tower"
            add_overlap(case, recorder, timer, src, rings)


def check(name: str, copy: Callable[[], object], dst: Tensor, expected: Tensor) -> None:
    """Raise RuntimeError if a copy of the feature writes wrong values to `dst`."""
    dst.fill_(float("nan"))
    copy()
    if not torch.equal(dst.cpu(), expected):
        raise RuntimeError(f"{name} copied wrong values: it gets no number")


def add_construction(case: RingCase, recorder: Recorder, timer: Timer) -> None:
    """Add the time to construct a ring; on a GPU, compared with page-locking by torch's CUDA runtime."""
    on_gpu = timer.device.type == "cuda"
    functions: dict[str, Callable[[], object]] = {}
    if on_gpu:
        functions["page-lock"] = lambda: page_lock(case.constructed_bytes)

    def construct() -> None:
        with ExitStack() as rings:
            rings.enter_context(PinnedRing(case.constructed_bytes, backend="cuda" if on_gpu else "host"))

    functions["ring"] = construct
    few = timer.with_repeats(3)
    samples = few.rounds_us(functions)
    for name, sample in samples.items():
        judged = on_gpu and name == "ring"
        against = ("page-lock", samples["page-lock"].value) if on_gpu else None
        recorder.add(
            case.name,
            name,
            "construct_us",
            "us",
            sample,
            bytes_moved=case.constructed_bytes,
            against=against,
            target=1.0 if judged else None,
            limit=samples["page-lock"].value if judged else None,
        )


def page_lock(num_bytes: int) -> None:
    """Map memory, page-lock it untouched, and unlock it, by the CUDA functions that torch exposes."""
    memory = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
    cudart = torch.cuda.cudart()
    status = cudart.cudaHostRegister(memory.data_ptr(), num_bytes, 0)
    if status != 0:
        raise RuntimeError(f"cannot page-lock {num_bytes} bytes: {cudart.cudaGetErrorString(status)}")
    cudart.cudaHostUnregister(memory.data_ptr())


def thread_counts() -> list[int]:
    """Return 1, 2, and those of 4, 8, 12 that are below the default number of threads, and the default."""
    limit = max(2, default_num_threads())
    return sorted({*(count for count in (1, 2, 4, 8, 12) if count <= limit), default_num_threads()})


def stock_copies(src: Tensor, dst: Tensor) -> dict[str, Callable[[], object]]:
    """Return torch's own copies; the last one is the ceiling. On the CPU the only one is ``copy_``."""
    if dst.device.type == "cpu":
        return {"copy": lambda: dst.copy_(src)}
    pinned = src.pin_memory()
    return {
        "pageable .to": lambda: dst.copy_(src),
        "pin_memory().to": lambda: dst.copy_(src.pin_memory(), non_blocking=True),
        "pinned .to": lambda: dst.copy_(pinned, non_blocking=True),
    }


def make_ring(case: RingCase, device: torch.device, rings: ExitStack, **options: int) -> PinnedRing:
    """Open a ring with space for the whole feature; `rings` closes it."""
    backend = "cuda" if device.type == "cuda" else "host"
    chosen = device if device.type == "cuda" else None
    capacity = max(case.num_bytes, 1 << 20)
    return rings.enter_context(PinnedRing(capacity, backend=backend, device=chosen, **options))


def ring_copies(
    case: RingCase, src: Tensor, dst: Tensor, rings: ExitStack
) -> dict[str, Callable[[], object]]:
    """Return copies through rings with different numbers of threads and different piece sizes."""
    copies: dict[str, Callable[[], object]] = {}

    def add(name: str, **options: int) -> None:
        ring = make_ring(case, dst.device, rings, **options)
        copies[name] = lambda: ring.copy_to(dst, src).wait()

    for count in thread_counts():
        add(f"{count} threads", num_threads=count)
    for mebibytes in (1, 16):
        add(f"pieces of {mebibytes} MiB", piece_bytes=mebibytes << 20)
    return copies


def add_copies(
    case: RingCase, recorder: Recorder, timer: Timer, contenders: dict[str, Callable[[], object]]
) -> None:
    """Add the time until each copy is complete, and its processor time on all threads."""
    on_gpu = timer.device.type == "cuda"
    ceiling = "pinned .to" if on_gpu else "copy"
    samples = timer.rounds_us(contenders)
    share = CEILING_SHARE if on_gpu else BOTH_SHARE
    judged_threads = JUDGED_THREADS if on_gpu else default_num_threads()
    for name, sample in samples.items():
        judged = name == f"{judged_threads} threads" and case.num_bytes >= JUDGED_BYTES
        recorder.add(
            case.name,
            name,
            "done_us",
            "us",
            sample,
            bytes_moved=case.num_bytes,
            against=(ceiling, samples[ceiling].value),
            target=share if judged else None,
            limit=samples[ceiling].value / share if judged else None,
        )
        recorder.add(case.name, name, "cpu_us", "us", cpu_us(contenders[name], timer))
    judged = on_gpu and case.num_bytes >= JUDGED_BYTES
    recorder.add(
        case.name,
        "2 threads over 1",
        "speedup",
        "x",
        Sample.of([samples["1 threads"].value / samples["2 threads"].value]),
        target=TWO_OVER_ONE if judged else None,
        limit=TWO_OVER_ONE if judged else None,
        at_least=True,
    )


def cpu_us(function: Callable[[], object], timer: Timer) -> Sample:
    """Return the processor time of all threads of the process until a call is complete on the device."""
    values = []
    for _ in range(max(3, timer.repeats // 5)):
        timer.synchronize()
        begin = time.process_time()
        function()
        timer.synchronize()
        values.append((time.process_time() - begin) * 1e6)
    return Sample.of(values)


def add_producers(case: RingCase, recorder: Recorder, timer: Timer, src: Tensor, dst: Tensor) -> None:
    """Add the joint rate of several threads that share a ring; its ratio is to the rate of one thread."""
    with ExitStack() as stack:
        ring = make_ring(case, timer.device, stack)
        functions: dict[str, Callable[[], object]] = {}
        for count in case.producers:
            name = f"{count} producers"
            functions[name] = stack.enter_context(producers(count, ring, dst, src))
            check(name, functions[name], dst, src)
        samples = timer.rounds_us(functions)
        cpu_samples = {name: cpu_us(function, timer) for name, function in functions.items()}
    rates = {name: gb_per_s(sample, case.num_bytes) for name, sample in samples.items()}
    alone = next(iter(rates))
    for name, rate in rates.items():
        recorder.add(
            case.name,
            name,
            "gb_per_s",
            "GB/s",
            rate,
            bytes_moved=case.num_bytes,
            against=(alone, rates[alone].value),
        )
        recorder.add(case.name, name, "cpu_us", "us", cpu_samples[name])


def add_casts(case: RingCase, recorder: Recorder, timer: Timer, src: Tensor, rings: ExitStack) -> None:
    """Add copies that cast float32 to 16 bits: in the ring, and by a cast on the host before a copy."""
    ring = make_ring(case, timer.device, rings)
    for dtype in (torch.bfloat16, torch.float16):
        dst = torch.empty_like(src, dtype=dtype, device=timer.device)
        name = str(dtype).removeprefix("torch.")
        functions: dict[str, Callable[[], object]] = {
            f"cast, then .to {name}": lambda dst=dst, dtype=dtype: dst.copy_(src.to(dtype)),
            f"ring {name}": lambda dst=dst: ring.copy_to(dst, src).wait(),
        }
        for label, function in functions.items():
            check(label, function, dst, src.to(dtype))
        samples = timer.rounds_us(functions)
        against = next(iter(samples))
        for label, sample in samples.items():
            recorder.add(case.name, label, "done_us", "us", sample, against=(against, samples[against].value))


def add_fills(case: RingCase, recorder: Recorder, timer: Timer, src: Tensor, dst: Tensor) -> None:
    """Add the time of the fill alone, while the ring's stream is blocked, and of torch's copy.

    Both use the same number of threads.
    """
    previous_num_threads = torch.get_num_threads()
    for count in sorted({1, 2, default_num_threads()}):
        torch.set_num_threads(count)
        with ExitStack() as rings:
            ring = make_ring(case, timer.device, rings, num_threads=count)
            copies, fills = [], []
            for _ in range(timer.repeats + 2):
                begin = time.perf_counter()
                dst.copy_(src)
                copies.append((time.perf_counter() - begin) * 1e6)
                with blocked_stream(ring):
                    begin = time.perf_counter()
                    ticket = ring.copy_to(dst, src)
                    while ring.stats().num_unread:
                        time.sleep(1e-4)
                    fills.append((time.perf_counter() - begin) * 1e6)
                ticket.synchronize()
        copy, fill = Sample.of(copies[2:]), Sample.of(fills[2:])
        judged = case.num_bytes >= JUDGED_BYTES
        recorder.add(case.name, f"copy, {count} threads", "fill_us", "us", copy, bytes_moved=case.num_bytes)
        recorder.add(
            case.name,
            f"fill, {count} threads",
            "fill_us",
            "us",
            fill,
            bytes_moved=case.num_bytes,
            against=(f"copy, {count} threads", copy.value),
            target=FILL_SHARE if judged else None,
            limit=copy.value / FILL_SHARE if judged else None,
        )
    torch.set_num_threads(previous_num_threads)


def add_overlap(case: RingCase, recorder: Recorder, timer: Timer, src: Tensor, rings: ExitStack) -> None:
    """Add the time of a tower while the next feature is copied; its ratio is to the tower without a copy."""
    device = timer.device
    ring = make_ring(case, device, rings)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = torch.randn(min(case.rows, 3600), case.width, dtype=dtype, device=device)
    weights = torch.randn(case.layers, case.width, case.width, dtype=dtype, device=device) * case.width**-0.5
    dst = torch.empty_like(src, device=device)

    def tower() -> Tensor:
        hidden = rows
        for weight in weights:
            hidden = torch.nn.functional.gelu(hidden @ weight)
        return hidden

    def ring_beside() -> None:
        ticket = ring.copy_to(dst, src)
        tower()
        ticket.wait()

    def stock_before() -> None:
        dst.copy_(src)
        tower()

    samples = timer.rounds_us({"tower": tower, "ring beside": ring_beside, ".to before": stock_before})
    alone = samples["tower"].value
    for name, sample in samples.items():
        recorder.add(case.name, name, "step_us", "us", sample, against=("tower", alone))
    copied = timer.rounds_us({"copy": lambda: ring.copy_to(dst, src).wait()})["copy"].value
    hidden = 1 - (samples["ring beside"].value - alone) / copied
    recorder.add(case.name, "ring beside", "hidden_share", "of the copy", Sample.of([hidden]))
