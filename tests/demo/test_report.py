"""The words of the demo: sentences, title and medians that follow from the rows."""

import dataclasses

from vitcache.demo import chat_plot
from vitcache.demo.report import facts
from vitcache.demo.row import TIMES, Row


def make_row(count: int) -> Row:
    return Row(count, count, count, 1, 1, 0, 0, 5.0, 2.0, 9.0, 6.0, 7.0, 8, 8, 8, True, True, 0.0, 1, {})


def test_row_with_runs_takes_medians_of_its_own_times_and_others() -> None:
    row = make_row(2).with_runs([dict.fromkeys(TIMES, 100.0), dict.fromkeys(TIMES, 0.0)])
    assert row.samples["ttft_ms_stock"] == [9.0, 100.0, 0.0]
    assert (row.ttft_ms_stock, row.vision_ms, row.ttft_ms_attach) == (9.0, 2.0, 7.0)


def test_title_of_the_plot_says_encodes_and_logits_of_the_rows() -> None:
    rows = [make_row(1), make_row(2)]
    assert chat_plot.title_of(rows) == (
        "A chat of 2 turns: the stock model encodes 3 images, vitcache 2; all logits are equal"
    )
    differs = dataclasses.replace(rows[1], equal_attach=False)
    assert chat_plot.title_of([rows[0], differs]).endswith("logits differ in 1 of 2 turns")


def test_facts_use_the_singular_for_one_image() -> None:
    assert "the stock model encoded 1 image, attach 1." in facts([make_row(1)])[0]
    assert "the stock model encoded 2 images, attach 1." in facts([make_row(2)])[0]


def test_facts_name_the_spread_of_stock_only_if_there_is_one() -> None:
    row = make_row(1)
    assert "one batch" not in facts([row])[2]
    assert "by up to 0.5" in facts([dataclasses.replace(row, spread_stock=0.5)])[2]
