"""The figures of ``vitcache memory --plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitcache.bench.traffic.memory_results import ModelMemory, TraceMemory
from vitcache.bench.traffic.size_text import size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Colours of Okabe and Ito, which colour-blind readers can tell apart; markers tell the lines apart in print.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"
MARKERS = "osD^vP*X"
GIB = 1 << 30


def draw_trace(result: TraceMemory) -> Figure:
    """Draw the hit rate and the saved encode time over the size of the cache."""
    figure, axes = _figure()
    sizes = [size.bytes / GIB for size in result.sizes]
    lines = {
        "hits": [size.hit_rate for size in result.sizes],
        "time saved": [size.saved for size in result.sizes],
        "time saved, at most": [size.saved_at_most for size in result.sizes],
    }
    # Hits and saved time are often equal: hollow markers and dashes show both lines.
    looks: tuple[dict[str, Any], ...] = {"fillstyle": "none", "ms": 10}, {"ls": "--"}, {"ls": ":"}
    for number, ((label, shares), look) in enumerate(zip(lines.items(), looks, strict=True)):
        shares = [100 * share for share in shares]
        axes.plot(sizes, shares, marker=MARKERS[number], c=COLOURS[number], label=label, **look)
    title = f"{result.trace}: a cache saves nothing"
    if result.device_bytes is not None:
        text = size_text(result.device_bytes)
        axes.axvline(result.device_bytes / GIB, color="0.4", lw=1, label=text)
        title = f"{result.trace}: {text} reaches {result.target:.0%} of the largest saving"
    axes.set(title=title, ylabel="share of the images, or of the encode time (%)", ylim=(0, 100))
    footer = f"{result.images:,} images, {result.different:,} different; simulated, policy {result.policy}"
    _finish(figure, axes, f"{footer}, rows of {size_text(result.row_bytes)}")
    return figure


def draw_models(results: list[ModelMemory]) -> Figure:
    """Draw the number of images over the size of the cache, for the first image size that was counted."""
    figure, axes = _figure()
    for number, result in enumerate(results):
        held = result.images[0].held
        place = number % len(COLOURS)
        axes.plot(
            [one.bytes / GIB for one in held],
            [one.images for one in held],
            "-" + MARKERS[place],
            c=COLOURS[place],
            label=result.model,
        )
    image = results[0].images[0].image
    first = [result.images[0].held[0] for result in results]
    counts = [held.images for held in first]
    title = f"{size_text(first[0].bytes)} holds {min(counts):,} to {max(counts):,} images of {image}"
    axes.set(title=title, ylabel="images in the cache", yscale="log")
    _finish(figure, axes, f"counted from the models' configurations, {results[0].dtype}")
    axes.set_xticks([held.bytes / GIB for held in results[0].images[0].held])
    axes.minorticks_off()
    return figure


def _figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    return figure, figure.add_subplot()


def _finish(figure: Figure, axes: Any, footer: str) -> None:
    """Add the common parts of both figures: the axis of sizes, the legend outside of the data, the footer."""
    axes.set_xscale("log", base=4)
    axes.set_xlabel("size of the cache (GiB)")
    axes.xaxis.set_major_formatter(lambda gib, _: f"{gib:.3g}")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    figure.supxlabel(footer, fontsize=8, color="0.4")
