"""The figures of ``vitcache memory --plot``, in the style of the other figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcache.bench.traffic.memory_results import ModelMemory, TraceMemory
from vitcache.bench.traffic.size_text import size_text
from vitcache.demo.figure_style import frame, open_figure, plain_ticks, span, styles, target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB = 1 << 30


def draw_trace(result: TraceMemory) -> Figure:
    """Draw the hit rate and the saved encode time over the size of the cache."""
    figure, [[axes]] = open_figure()
    sizes = [size.bytes / GIB for size in result.sizes]
    lines = {
        "hits": [size.hit_rate for size in result.sizes],
        "time saved": [size.saved for size in result.sizes],
        "time saved, at most": [size.saved_at_most for size in result.sizes],
    }
    for (label, shares), look in zip(lines.items(), styles(lines).values(), strict=True):
        axes.plot(sizes, [100 * share for share in shares], **look.curve(), label=label)
    title = f"{result.trace}: a cache saves nothing"
    if result.device_bytes is not None:
        text = size_text(result.device_bytes)
        target(axes, result.device_bytes / GIB, text, upright=True)
        title = f"{result.trace}: {text} reaches {result.target:.0%} of the largest saving"
    axes.set(ylabel="images, encode time (%)", ylim=(0, 100))
    _scale(axes, sizes)
    note = "hits: share of the images; time saved: share of the encode time; at most: with any policy."
    footer = f"{result.images:,} images, {result.different:,} different; simulated, policy {result.policy}"
    return frame(figure, title, note, f"{footer}, rows of {size_text(result.row_bytes)}")


def draw_models(results: list[ModelMemory]) -> Figure:
    """Draw the number of images over the size of the cache, for the first image size that was counted."""
    figure, [[axes]] = open_figure()
    looks = styles(result.model for result in results)
    for result in results:
        held = result.images[0].held
        places = [one.bytes / GIB for one in held]
        axes.plot(places, [one.images for one in held], **looks[result.model].curve(), label=result.model)
    holds_any = any(one.images for result in results for one in result.images[0].held)
    axes.set(ylabel="images in the cache", yscale="log" if holds_any else "linear")
    _scale(axes, places)
    first = [result.images[0].held[0] for result in results]
    counts = span((held.images for held in first), "{:,.0f}")
    title = f"{size_text(first[0].bytes)} holds {counts} images of {results[0].images[0].image}"
    dtypes = " or ".join(dict.fromkeys(result.dtype for result in results))
    return frame(figure, title, "", f"counted from the models' configurations, rows of {dtypes}")


def _scale(axes: Axes, sizes: list[float]) -> None:
    """Make the axis of the sizes logarithmic, with a tick at each size."""
    axes.set(xlabel="size of the cache (GiB)", xscale="log")
    plain_ticks(axes, [float(f"{size:.3g}") for size in sizes])
