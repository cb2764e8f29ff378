"""``python docs/images/journey.py``: draw docs/images/journey.png, how an image travels to `inputs_embeds`.

The picture has a white ground of its own, so that it is readable on light and on dark pages.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from vitcache.demo.figure_style import BLACK, COLORS, GREY, open_figure

BLUE, ORANGE, GREEN = COLORS[:3]
# Left, bottom, width, height, words and colour of each box.
BOXES = {
    "feature": (0.0, 3.0, 2.0, 1.2, "feature of an image\n(pixel_values)\nin host memory", GREY),
    "key": (2.9, 3.0, 1.7, 1.2, "key: hash of the\nfeature, 32 bytes", GREY),
    "encoder": (2.9, 0.4, 1.7, 1.2, "vision encoder,\nonce per image", ORANGE),
    "device": (5.5, 3.0, 2.1, 1.2, "pages in GPU memory\n(device tier)", BLUE),
    "host": (5.5, 0.4, 2.1, 1.2, "pages in pinned\nhost memory\n(host tier)", BLUE),
    "embeds": (8.6, 1.7, 1.9, 1.2, "inputs_embeds of\nthe language model", GREEN),
}
# Start, end, words, where the words are, and the side of that point on which they stand.
ARROWS = (
    ((2.0, 3.6), (2.9, 3.6), "hash", (2.45, 3.72), "center"),
    ((4.6, 3.6), (5.5, 3.6), "hit", (5.05, 3.72), "center"),
    ((3.75, 3.0), (3.75, 1.6), "miss", (3.85, 2.25), "left"),
    ((4.6, 1.2), (5.5, 3.2), "rows", (4.95, 2.25), "right"),
    ((6.35, 3.0), (6.35, 1.6), "full: demote", (6.27, 2.25), "right"),
    ((6.75, 1.6), (6.75, 3.0), "hit: promote", (6.83, 2.25), "left"),
    ((7.6, 3.4), (8.6, 2.6), "one launch", (8.2, 3.15), "left"),
    ((7.6, 1.2), (8.6, 2.0), "writes all rows", (8.2, 1.35), "left"),
)
TITLE = "An image is encoded once. Later turns copy its rows, in one launch."


def draw(axes: Axes) -> None:
    """Draw boxes and arrows."""
    for left, bottom, width, height, words, color in BOXES.values():
        shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0.02,rounding_size=0.12")
        shape.set(edgecolor=color, facecolor="white", linewidth=2)
        axes.add_patch(shape)
        axes.text(left + width / 2, bottom + height / 2, words, ha="center", va="center", size=10)
    for start, end, words, where, side in ARROWS:
        arrow = {"arrowstyle": "-|>", "color": BLACK, "linewidth": 1.4, "shrinkA": 2, "shrinkB": 2}
        axes.annotate("", end, start, arrowprops=arrow)
        axes.text(*where, words, ha=side, size=9, color=GREY)
    axes.set_title(TITLE, loc="left", weight="bold", size=13)
    axes.set(xlim=(-0.1, 10.6), ylim=(0.2, 4.4))
    axes.set_axis_off()


def main() -> None:
    """Write the picture beside this file."""
    figure, [[axes]] = open_figure(height=3.4)
    draw(axes)
    figure.savefig(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
