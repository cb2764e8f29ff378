"""The figure of the bench `ring`: copies beside torch's own, the fill alone, and the rate over producers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitcache.bench.harness import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TORCH = {
    "copy": "torch copy_ (default threads)",
    "pageable .to": "torch .to, pageable",
    "pin_memory().to": "torch pin_memory().to",
    "pinned .to": "torch .to, pinned (ceiling)",
}
RING, STOCK = "ring", "torch"
CPU_NOTE = (
    "No GPU: a stand-in for the CUDA runtime copies every byte a second time, from the ring's slots to the "
    "destination. So the ring writes each byte twice and torch's copy writes it once: the ring's whole copy "
    "cannot be faster here. The fill alone (pageable memory to slots) is the CPU's work beside a GPU."
)


def draw(rows: figures.Rows) -> Figure:
    """Draw a row of panels per feature: the copies, and the rates over producers that copy at once."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    on_cpu = str(rows[0]["device"]).startswith("cpu")
    figure, panels = figures.open_figure(len(cases), 2, height=3.1 * len(cases), width_ratios=(3, 2))
    for (left, right), case in zip(panels, cases, strict=True):
        some = [row for row in rows if row["case"] == case]
        draw_copies(left, some)
        draw_producers(right, some)
        left.set_title(f"feature of {words_of(case)}")
        right.set_title("several threads copy")
    note = f"{CPU_NOTE} {figures.SPREAD}" if on_cpu else figures.SPREAD
    return figures.finish(figure, rows, title_of(rows, on_cpu), note)


def draw_copies(axes: Axes, rows: figures.Rows) -> None:
    """Draw the milliseconds of each copy, then those of the fill alone and of torch's copy beside it."""
    looks = figures.styles((RING, STOCK))
    chosen = [row for row in rows if row["metric"] == "done_us" and "cast" not in row["contender"]]
    chosen = [row for row in chosen if "float16" not in row["contender"]]
    chosen += [row for row in rows if row["metric"] == "fill_us"]
    for place, row in enumerate(chosen):
        is_stock = row["contender"] in TORCH or row["contender"].startswith("copy, ")
        side = STOCK if is_stock else RING
        figures.point(axes, {**row, "contender": side}, place, looks[side], unit=" ms", scale=1e-3)
        if row["target"] is not None:  # a share of the speed of `ratio_to`
            most = row["value"] / row["ratio"] / row["target"] / 1e3
            figures.tick(axes, most, place)
    axes.set_yticks(range(len(chosen)), [label_of(row) for row in chosen])
    axes.set(
        ylim=(len(chosen) - 0.5, -0.5), xlim=(0, None), xlabel="milliseconds; less is better", ylabel="copy"
    )
    axes.grid(visible=False, axis="y")


def draw_producers(axes: Axes, rows: figures.Rows) -> None:
    """Draw the rate of all producers together."""
    look = figures.styles((RING,))[RING]
    points = [(int(row["contender"].split()[0]), row) for row in rows if row["metric"] == "gb_per_s"]
    if points:
        figures.curve(axes, points, look, RING)
    axes.set(xlabel="producers at once", ylabel="GB/s of all together", ylim=(0, None), xscale="log")
    figures.plain_ticks(axes, [x for x, _ in points])


def label_of(row: dict[str, Any]) -> str:
    """Name the copy of a row."""
    name = row["contender"].replace("1 threads", "1 thread")
    if row["metric"] == "fill_us":
        return name.replace("fill,", "fill alone,").replace("copy,", "torch copy_,")
    return TORCH.get(name) or f"ring, {name}"


def words_of(case: str) -> str:
    """Return "4 images of 2560x1440" for "4x2560x1440"."""
    count, _, size = case.partition("x")
    return f"{figures.images(count)} of {size}" if "x" in size else f"one image of {case}"


def title_of(rows: figures.Rows, on_cpu: bool) -> str:
    """Return the claim about the largest feature of the results."""
    case = rows[-1]["case"]
    some = [row for row in rows if row["case"] == case]
    copies = [row for row in some if row["metric"] == "done_us" and row["contender"].endswith(" threads")]
    whole = figures.span(row["ratio"] for row in copies)
    if not on_cpu:
        title = f"The ring copies pageable memory in {whole} times a copy of pinned memory"
        return f"{title} ({words_of(case)})"
    fills = figures.span(row["ratio"] for row in some if row["metric"] == "fill_us" and row["ratio"])
    return (
        f"Filling the ring takes {fills} times torch's copy of the same bytes; with the second copy that "
        f"this CPU adds, the ring takes {whole} times"
    )
