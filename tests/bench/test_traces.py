"""Generated traces: the same seed gives the same trace; sizes and repeats are as documented."""

from __future__ import annotations

import statistics

import pytest

from vitcache.bench.traffic.traces import (
    MEDIAN_TOKENS,
    P95_TOKENS,
    SCREEN_TOKENS,
    TRACES,
    Traffic,
    encode_ms,
    make_trace,
)


@pytest.mark.parametrize("name", TRACES)
def test_make_trace_same_arguments_give_the_same_trace(name: str) -> None:
    trace = make_trace(name, 400)
    assert len(trace) == 400
    assert trace == make_trace(name, 400)
    assert trace != make_trace(name, 400, seed=1)
    assert all(len(access.key) == 32 for access in trace)
    assert len({access.key for access in trace}) == len(set(trace))  # one size per key


def test_new_image_sizes_have_the_published_median_and_95th_percentile() -> None:
    traffic = Traffic(0)
    sizes = [traffic.new_image().num_rows for _ in range(20_000)]
    twentieths = statistics.quantiles(sizes, n=20)
    assert twentieths[9] == pytest.approx(MEDIAN_TOKENS, rel=0.03)
    assert twentieths[18] == pytest.approx(P95_TOKENS, rel=0.03)


def test_encode_ms_of_screenshots_is_the_measured_time() -> None:
    assert [round(encode_ms(num_rows)) for num_rows in SCREEN_TOKENS] == [27, 61, 137]
    assert encode_ms(1) == 27


def test_make_trace_share_of_new_images_fits_the_traffic() -> None:
    different = {name: len(set(make_trace(name, 5000))) / 5000 for name in TRACES}
    assert different["crawl"] > 0.7
    assert different["agents"] == pytest.approx(0.25, abs=0.06)  # the last five of twenty
    assert different["chats"] < 0.4
    assert different["documents"] < 0.35
