"""Every figure of the committed results is readable alone: words, units, colours, and nothing over data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from dry_results import BENCHES, dry_results
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vitcache.bench import plot
from vitcache.bench.harness import figures
from vitcache.demo import figure_style

RESULTS = sorted((Path(plot.__file__).parent / "results").glob("*-*.json"))


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


@pytest.fixture(scope="module", params=[*RESULTS, *BENCHES], ids=lambda name: getattr(name, "stem", name))
def figure(request: pytest.FixtureRequest) -> Figure:
    """The figure of a committed file, or of results of a bench that needs a GPU, which nothing measured."""
    source = request.param
    drawn = plot.draw(dry_results(source) if isinstance(source, str) else read(source))
    FigureCanvasAgg(drawn).draw()
    return drawn


def test_committed_results_are_drawn() -> None:
    assert len(RESULTS) >= 12


def visible(figure: Figure) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_visible()]


def texts(figure: Figure) -> Iterator[Text]:
    """All words of a figure that are drawn."""
    for text in figure.findobj(Text):
        axes = text.axes
        if text.get_text().strip() and text.get_visible() and (axes is None or axes.get_visible()):
            yield text


def test_committed_picture_is_drawn_from_the_committed_results(
    figure: Figure, request: pytest.FixtureRequest
) -> None:
    source = request.node.callspec.params["figure"]
    if isinstance(source, str):  # no picture of results that nothing measured
        return
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    committed = np.asarray(Image.open(source.with_suffix(".png")).convert("RGB"))
    assert committed.shape == drawn.shape
    # Another release of matplotlib may move a word by a pixel.
    assert np.abs(committed.astype(int) - drawn).mean() < 1.0


def test_figure_title_is_a_sentence_with_numbers(figure: Figure) -> None:
    title = figure.get_suptitle()
    assert len(title.split()) >= 6
    assert any(character.isdigit() for character in title)
    assert "nan" not in title


def test_figure_axes_are_labelled(figure: Figure) -> None:
    for axes in visible(figure):
        assert axes.get_xlabel(), axes.get_title()
        shares_labels = any(
            other is not axes and other.get_ylabel() for other in axes.get_shared_y_axes().get_siblings(axes)
        )
        assert axes.get_ylabel() or shares_labels, axes.get_title()


def test_figure_legend_lies_outside_of_the_panels(figure: Figure) -> None:
    own = [axes.get_legend() for axes in visible(figure) if axes.get_legend()]
    for legend in (*figure.legends, *own):
        box = legend.get_window_extent()
        for axes in visible(figure):
            assert not box.overlaps(axes.get_window_extent()), axes.get_title()


def test_figure_words_are_inside_the_canvas_and_apart_from_the_title(figure: Figure) -> None:
    whole = figure.get_tightbbox()
    assert min(whole.x0, whole.y0) >= 0
    assert whole.x1 <= figure.get_figwidth()
    assert whole.y1 <= figure.get_figheight()
    words = [text.get_window_extent() for text in figure.texts]  # title, note and footer
    for axes in visible(figure):
        box = axes.get_tightbbox()
        assert not any(box.overlaps(other) for other in words), axes.get_title()


def test_figure_contenders_have_colours_of_the_palette_and_other_marks(figure: Figure) -> None:
    for axes in visible(figure):
        looks: dict[str, set[tuple[str, str]]] = {}
        for container in axes.containers:
            if isinstance(container, ErrorbarContainer):
                line = container.lines[0]
                if line is None:  # of a bar
                    continue
                color, mark = to_hex(line.get_color()), f"{line.get_marker()}{line.get_linestyle()}"
            else:
                assert isinstance(container, BarContainer)
                color, mark = to_hex(container.patches[0].get_facecolor()), container.patches[0].get_hatch()
            looks.setdefault(color, set()).add((str(container.get_label()), str(mark)))
        assert {color.upper() for color in looks} <= {color.upper() for color in figures.COLORS}
        by_label = {label: (color, mark) for color, found in looks.items() for label, mark in found}
        marks = [mark for _, mark in by_label.values()]
        assert len(set(by_label.values())) == len(by_label)
        assert len(set(marks)) >= min(len(looks), len(marks))


def test_figure_footer_names_bench_machine_commit_and_date(figure: Figure) -> None:
    footer = figure.texts[-1].get_text()
    assert footer.startswith("vitcache bench ")
    assert all(words in footer for words in ("commit ", "torch ", "2026-"))
    assert ("CPU" in footer and "no GPU" in footer) != ("H100" in footer)


def test_figure_has_the_width_of_a_page_of_github(figure: Figure) -> None:
    assert figure.get_figwidth() == figure_style.WIDTH
    sizes = {text.get_fontsize() for text in texts(figure)}
    assert min(sizes) >= 7


@pytest.mark.parametrize("name", ["attach", "merge", "cpu", "decode", "ring"])
def test_title_follows_from_the_numbers(name: str) -> None:
    (path,) = [path for path in RESULTS if path.stem.startswith(f"{name}-")]
    rows = read(path)
    slower = [{**row, "ratio": row["ratio"] and row["ratio"] * 7, "value": row["value"] * 7} for row in rows]
    assert plot.draw(slower).get_suptitle() != plot.draw(rows).get_suptitle()


def test_title_of_attach_says_that_a_target_is_missed() -> None:
    (path,) = [path for path in RESULTS if path.stem.startswith("attach-")]
    missed = [{**row, "meets_target": row["meets_target"] and False} for row in read(path)]
    assert "a target is missed" in " ".join(plot.draw(missed).get_suptitle().split())


def test_title_of_accuracy_counts_the_answers_that_differ() -> None:
    (path,) = [path for path in RESULTS if path.stem.startswith("accuracy-")]
    rows = read(path)
    wrong = [{**row, "value": 3.0} if row["metric"] == "different_answers" else row for row in rows]
    assert "With the cache 3 of 400 answers" in " ".join(plot.draw(wrong).get_suptitle().split())
    assert "All 400 answers" in plot.draw(rows).get_suptitle()


def test_compare_draws_a_count_of_zero_at_the_ratio_zero() -> None:
    row = {"case": "chat", "contender": "vitcache", "value": 0.0, "p20": 0.0, "p80": 0.0, "ratio": 0.0}
    _, [[axes]] = figures.open_figure()
    figures.compare(axes, [row], figures.styles(["vitcache"]), as_ratio=True)
    [container] = axes.containers
    assert list(container.lines[0].get_xdata()) == [0.0]


def test_styles_of_nine_contenders_raise() -> None:
    assert len(set(figures.styles("abcdefgh").values())) == 8
    with pytest.raises(ValueError, match="at most 8 contenders in a figure, got 9"):
        figures.styles("abcdefghi")


def test_styles_differ_in_colour_hatch_and_marker() -> None:
    for field in ("color", "hatch", "marker", "line"):
        assert len({getattr(style, field) for style in figures.STYLES}) == len(figures.STYLES)


def test_span_of_values_that_are_alike_is_one_value() -> None:
    assert figures.span([1.0, 1.001]) == "1.00"
    assert figures.span(chain([2.5], [1.0])) == "1.00 to 2.50"


def test_number_has_three_digits_and_no_exponent() -> None:
    assert [figures.number(value) for value in (0, 0.01234, 9.876, 98.76, 1203.3)] == [
        *("0", "0.0123", "9.88", "98.8", "1,203")
    ]
