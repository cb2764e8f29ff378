"""The pictures of docs/images: the demo's numbers and its picture, and the journey of an image."""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from vitcache.bench import tables
from vitcache.demo import chat_table
from vitcache.demo.chat_plot import write_plot
from vitcache.demo.figure_style import open_figure
from vitcache.demo.row import Row

IMAGES = Path(__file__).parents[2] / "docs" / "images"

pytestmark = pytest.mark.skipif(not IMAGES.exists(), reason="needs the folder docs/ of the repository")


def test_journey_words_do_not_overlap_and_lie_in_the_canvas() -> None:
    draw = runpy.run_path(str(IMAGES / "journey.py"))["draw"]
    figure, [[axes]] = open_figure(height=3.4)
    draw(axes)
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    assert len(boxes) == 14
    for (first, box), (second, other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other), (first, second)
    whole = figure.get_tightbbox()
    assert min(whole.x0, whole.y0) >= 0
    assert whole.x1 <= figure.get_figwidth()


def test_chat_numbers_of_the_repository_give_the_picture_and_the_table(tmp_path: Path) -> None:
    report = json.loads((IMAGES / "chat.json").read_text())
    rows = [Row(**row) for row in report["rows"]]
    assert all(row.equal for row in rows)
    cells = [line.split(" | ")[0] for line in chat_table.markdown(report) if line.startswith("| ")]
    assert cells[2:] == [f"| {turn}" for turn in (1, 2, rows[-1].turn)]
    write_plot(tmp_path / "chat.png", rows, report)
    drawn, committed = (
        np.asarray(Image.open(folder / "chat.png").convert("RGB")).astype(int)
        for folder in (tmp_path, IMAGES)
    )
    assert committed.shape == drawn.shape
    # Another release of matplotlib may move a word by a pixel.
    assert np.abs(committed - drawn).mean() < 1.0


def test_chat_plot_legend_and_words_lie_outside_of_the_panels(tmp_path: Path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    report = json.loads((IMAGES / "chat.json").read_text())
    write_plot(tmp_path / "chat.png", [Row(**row) for row in report["rows"]], report)
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert not any(axes.get_tightbbox().overlaps(text.get_window_extent()) for text in figure.texts)
    assert "20th to 80th percentile" in figure.texts[1].get_text()


def test_fill_table_of_the_demo_has_the_numbers_of_the_repository(tmp_path: Path) -> None:
    text = tables.fill("before\n<!-- table: demo -->\nold\n<!-- end -->\nafter\n", tmp_path)
    report = json.loads((IMAGES / "chat.json").read_text())
    lines = text.splitlines()
    assert "old" not in text
    assert (lines[0], lines[-1]) == ("before", "after")
    assert [line for line in lines if line.startswith("|")] == chat_table.markdown(report)[:-2]
    assert tables.fill(text, tmp_path) == text
