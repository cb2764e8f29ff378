"""Claim: the ring moves pageable features to the device near the speed of its bus, and hides the copy.

On a GPU: against ``.to()`` from pageable memory, ``.pin_memory().to()``, and ``.to()`` from pinned memory,
the ceiling; by threads, piece size, cast and number of producers; then beside a stack of matrix products that
stands for a vision tower. Without one the stand-in for the runtime copies every byte a second time, and the
filling alone is measured, too, against this machine's own copy with as many threads.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitcache import PinnedRing
from vitcache.bench.claims.producers import producers
from vitcache.bench.harness.ratios import draw_ratios
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.standing_stream import standing_stream
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.ring.pinned_ring import default_num_threads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "ring"
CLAIMS_CPU = True
# Targets of the design: shares of the pinned ceiling with 12 threads, and of two threads over one.
CEILING_SHARE, JUDGED_THREADS, TWO_OVER_ONE = 0.75, 12, 1.8
# Without a GPU: of this machine's copy, for filling, and for both copies together.
FILL_SHARE, BOTH_SHARE = 0.9, 0.45
JUDGED_BYTES = 64 << 20  # below, the host's last cache holds all of it
FEW_LAYERS = 2  # what a CPU can run again and again; there the overlap is only seen to work


@dataclass(frozen=True)
class RingCase:
    """A float32 feature of ``(rows, width)``, and layers of a tower of that width to run beside the copy;
    a ring to construct, in bytes; and how many threads copy at once.
    """

    name: str
    rows: int
    width: int
    layers: int
    constructed_bytes: int = 1 << 30
    producers: tuple[int, ...] = (1, 2, 4, 8)

    @property
    def num_bytes(self) -> int:
        """Bytes of the feature."""
        return self.rows * self.width * 4


# Qwen-VL patches: 16 x 16 x 3 x 2 float32 values, 80 x 45 of them at 1280x720.
CASES = {
    "full": [
        RingCase("1280x720", 3_600, 1536, 32),
        RingCase("4x2560x1440", 4 * 14_400, 1536, 32),
    ],
    "smoke": [RingCase("tiny", 50, 64, 2, 1 << 20, (1, 2))],
}


def run_case(case: RingCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields what it does next."""
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
    """Refuse to measure what copies other values."""
    dst.fill_(float("nan"))
    copy()
    if not torch.equal(dst.cpu(), expected):
        raise RuntimeError(f"{name} copied other values: it gets no number")


def add_construction(case: RingCase, recorder: Recorder, timer: Timer) -> None:
    """What it takes to have page-locked memory, on a GPU against torch's own."""
    on_gpu = timer.device.type == "cuda"
    functions: dict[str, Callable[[], object]] = {}
    if on_gpu:
        functions["page-lock"] = lambda: page_lock(case.constructed_bytes)

    def construct() -> None:
        with ExitStack() as rings:
            rings.enter_context(PinnedRing(case.constructed_bytes, backend="cuda" if on_gpu else "host"))

    functions["ring"] = construct
    few = Timer(timer.device, repeats=3)
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
    """Allocate memory, lock it as it comes, and give it back: by what torch itself calls."""
    memory = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
    cudart = torch.cuda.cudart()
    status = cudart.cudaHostRegister(memory.data_ptr(), num_bytes, 0)
    if status != 0:
        raise RuntimeError(f"cannot page-lock {num_bytes} bytes: {cudart.cudaGetErrorString(status)}")
    cudart.cudaHostUnregister(memory.data_ptr())


def thread_counts() -> list[int]:
    """1, 2, 4, 8, 12 as far as there are cores, and the default."""
    most = max(2, default_num_threads())
    return sorted({*(count for count in (1, 2, 4, 8, 12) if count <= most), default_num_threads()})


def stock_copies(src: Tensor, dst: Tensor) -> dict[str, Callable[[], object]]:
    """What torch offers. The last one is the ceiling; on the CPU it is torch's own copy."""
    if dst.device.type == "cpu":
        return {"copy": lambda: dst.copy_(src)}
    pinned = src.pin_memory()
    return {
        "pageable .to": lambda: dst.copy_(src),
        "pin_memory().to": lambda: dst.copy_(src.pin_memory(), non_blocking=True),
        "pinned .to": lambda: dst.copy_(pinned, non_blocking=True),
    }


def make_ring(case: RingCase, device: torch.device, rings: ExitStack, **options: int) -> PinnedRing:
    """A ring that lasts as long as the case, with room for the feature."""
    backend = "cuda" if device.type == "cuda" else "host"
    chosen = device if device.type == "cuda" else None
    capacity = max(case.num_bytes, 1 << 20)
    return rings.enter_context(PinnedRing(capacity, backend=backend, device=chosen, **options))


def ring_copies(
    case: RingCase, src: Tensor, dst: Tensor, rings: ExitStack
) -> dict[str, Callable[[], object]]:
    """The ring by threads and by piece size."""
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
    """Time until the bytes have arrived, and the processor time that it took on all threads."""
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
    """Processor time of a call on all threads of the process, until it is done."""
    values = []
    for _ in range(max(3, timer.repeats // 5)):
        timer.synchronize()
        begin = time.process_time()
        function()
        timer.synchronize()
        values.append((time.process_time() - begin) * 1e6)
    return Sample.of(values)


def add_producers(case: RingCase, recorder: Recorder, timer: Timer, src: Tensor, dst: Tensor) -> None:
    """What threads that share a ring get together, beside what one gets alone."""
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


def gb_per_s(times_us: Sample, num_bytes: int) -> Sample:
    """GB/s; the longest times are the lowest rates."""
    in_order = times_us.value, times_us.p80, times_us.p20
    return Sample(*(num_bytes / time_us / 1e3 for time_us in in_order))


def add_casts(case: RingCase, recorder: Recorder, timer: Timer, src: Tensor, rings: ExitStack) -> None:
    """float32 to 16 bits on the way, beside a cast on the host and a copy of the result."""
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
    """The worker threads alone, while the stand-in's streams stand still; torch copies with as many."""
    before = torch.get_num_threads()
    for count in sorted({1, 2, default_num_threads()}):
        torch.set_num_threads(count)
        with ExitStack() as rings:
            ring = make_ring(case, timer.device, rings, num_threads=count)
            copies, fills = [], []
            for _ in range(timer.repeats + 2):
                begin = time.perf_counter()
                dst.copy_(src)
                copies.append((time.perf_counter() - begin) * 1e6)
                with standing_stream(ring):
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
    torch.set_num_threads(before)


def add_overlap(case: RingCase, recorder: Recorder, timer: Timer, src: Tensor, rings: ExitStack) -> None:
    """The next feature's copy beside a tower: the time of both over that of the tower alone."""
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


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Bars of the copies as multiples of the limit; beside them a line per case of what producers get."""
    figure = draw_ratios(rows, panels=2)
    axes = figure.axes[1]
    rates = [row for row in rows if row["metric"] == "gb_per_s"]
    for case in dict.fromkeys(row["case"] for row in rates):
        line = [(row["contender"].split()[0], row["value"]) for row in rates if row["case"] == case]
        axes.plot(*zip(*line, strict=True), marker=".", label=case)
    axes.set(xlabel="producers at once", ylabel="GB/s together", ylim=(0, None))
    axes.legend(fontsize=8)
    return figure
