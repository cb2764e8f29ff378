"""The figure of the bench `keys`: the time of the keys of a step by source, and the rates of the hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitcache.bench.harness import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCES = {
    "features": "hash of the features",
    "pixels": "hash of the pixels",
    "file": "hash of the file",
    "known file": "file that is known",
    "given": "key given by the caller",
    "device features": "hash of features on the GPU",
}
REFERENCES = {"process": "image processor", "encode": "encode of the tower"}
ORDER = ("features", "pixels", "file", "known file", "given", "process", "device features", "encode")
HASHES = ("KeyThreads", "content_key", "blake3 alone", "sha256 alone")


def draw(rows: figures.Rows) -> Figure:
    """Draw the steps' times by source, a panel per step, and the rates by hash, a panel per feature size."""
    steps = [row for row in rows if row["metric"] == "done_us"]
    rates = [row for row in rows if row["metric"] == "gb_per_s"]
    kinds = [(some, list(dict.fromkeys(row["case"] for row in some))) for some in (steps, rates)]
    columns = max(len(cases) for _, cases in kinds)
    figure, panels = figures.open_figure(2, columns, height=6.2)
    for line, (some, cases) in zip(panels, kinds, strict=True):
        for axes, case in zip(line, cases, strict=False):
            (draw_steps if some is steps else draw_rates)(axes, [row for row in some if row["case"] == case])
            count, _, size = case.partition("x")
            axes.set_title(f"{figures.images(count)} of {size}" if some is steps else f"{case} of features")
        for axes in line[len(cases) :]:
            axes.set_visible(False)
        if cases:
            look = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02), "frameon": False, "fontsize": 8}
            line[len(cases) - 1].legend(**look)
    return figures.finish(figure, rows, title_of(steps, rates), figures.SPREAD, legend=False)


def draw_steps(axes: Axes, rows: figures.Rows) -> None:
    """Draw the milliseconds of the keys of one step over the threads, and of the work that a hit saves."""
    looks = figures.styles(ORDER)
    rows = [{**row, **{name: row[name] / 1e3 for name in ("value", "p20", "p80")}} for row in rows]
    counts = sorted({threads_of(row) for row in rows if row["contender"].endswith("threads")}) or [1]
    for name, words in (SOURCES | REFERENCES).items():
        # A contender that uses no key threads takes the same time at all their numbers.
        alone = [(count, row) for row in rows if row["contender"] == name for count in counts]
        points = by_threads(rows, name) or alone
        if points:
            figures.curve(axes, points, looks[name], words)
    axes.set(xlabel="key threads", ylabel="milliseconds of a step", xscale="log", yscale="log")
    axes.grid(visible=False, which="minor")
    low, high = axes.get_ylim()
    figures.plain_ticks(axes, [10.0**n for n in range(-5, 6) if low <= 10.0**n <= high], "y")
    figures.plain_ticks(axes, counts)


def draw_rates(axes: Axes, rows: figures.Rows) -> None:
    """Draw the rate of each hash over the number of threads."""
    for name, look in figures.styles(HASHES).items():
        points = by_threads(rows, name)
        if points:
            figures.curve(axes, points, look, name)
    axes.set(xlabel="threads", ylabel="GB/s; more is better", ylim=(0, None), xscale="log")
    figures.plain_ticks(axes, sorted(set(map(threads_of, rows))))


def by_threads(rows: figures.Rows, name: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a contender that uses threads, each with their number."""
    return [(threads_of(row), row) for row in rows if row["contender"].startswith(f"{name}, ")]


def threads_of(row: dict[str, Any]) -> int:
    """Return 4 for the contender "pixels, 4 threads"."""
    return int(row["contender"].split()[-2])


def title_of(steps: figures.Rows, rates: figures.Rows) -> str:
    """Return the claim: the share of keys in the work that they save, and their rate beside BLAKE3 alone."""
    parts = []
    if steps:
        reference = REFERENCES[steps[0]["ratio_to"]]
        for source, words in (("given", "given keys take"), ("features, 1 threads", "hashed features take")):
            shares = [100 * share for share in figures.values(steps, source)]
            if shares:
                parts.append(f"{words} {figures.span(shares, '{:.2g}')} %")
        parts[-1] += f" of the time of the {reference}"
    ratios = [row["ratio"] for row in rates if row["contender"].startswith("KeyThreads")]
    if ratios:
        parts.append(f"KeyThreads hash at {figures.span(ratios)} times the speed of BLAKE3 alone")
    title = "; ".join(parts)
    return title[0].upper() + title[1:]
