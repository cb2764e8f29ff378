"""All other benches at smoke size: results have the schema, and a wrong contender gets no number."""

import argparse
import json
import threading
import time
from contextlib import nullcontext

import pytest
import torch

from vitcache.adapters.transcript import Transcript
from vitcache.bench import plot, run
from vitcache.bench.chats import contenders
from vitcache.bench.claims import (
    bench_attach,
    bench_cache,
    bench_decode,
    bench_keys,
    bench_pages,
    bench_placement,
    bench_ring,
    bench_scatter,
    key_rates,
)
from vitcache.bench.harness import published, tune
from vitcache.bench.harness.record import FIELDS, Recorder
from vitcache.bench.harness.registry import PLACEMENT_CASES
from vitcache.bench.harness.timing import Sample, Timer, us_per_call
from vitcache.bench.traffic.traces import TRACES
from vitcache.cache.policies import POLICIES


def run_bench(directory, *arguments):
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    code = run.run(parser.parse_args(["--cases", "smoke", "--out", str(directory), *arguments]))
    return code, {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")}


def test_placement_bench_each_case_and_contender_has_a_result_of_the_schema(tmp_path, capsys):
    code, files = run_bench(tmp_path, "--bench", "placement")
    assert code == 0
    (rows,) = files.values()
    assert all(tuple(row) == tuple(FIELDS) for row in rows)
    assert any(row["metric"] == "speedup" and row["contender"] == "ahead of transformers" for row in rows)
    times = {(row["case"], row["contender"]): row for row in rows if row["metric"] == "device_us"}
    for case in PLACEMENT_CASES["smoke"]:
        for contender in ("copy", *contenders.CONTENDERS):
            expected = not (case.levels and contender in contenders.WITHOUT_DEEPSTACK)
            assert ((case.name, contender) in times) is expected
    row = times["3x7", "vitcache"]
    assert row["value"] > 0
    assert row["ratio"] == pytest.approx(row["value"] / times["3x7", "copy"]["value"], rel=1e-3)
    assert "placement on" in capsys.readouterr().out


def test_placement_bench_wrong_contender_gets_no_number_and_fails_the_run(tmp_path, monkeypatch, capsys):
    def wrong(scene):
        out, deepstack = contenders.slice_loop(scene)
        out[scene.spans[0].start] += 1
        return out, deepstack

    monkeypatch.setitem(bench_placement.CONTENDERS, "vllm", wrong)
    code, files = run_bench(tmp_path, "--bench", "placement")
    assert code == 1
    assert not [row for rows in files.values() for row in rows if row["contender"] == "vllm"]
    assert "vllm built inputs_embeds unlike the slice loop's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "scatter",
            {"copy", "pinned-copy", *bench_scatter.SOURCES},
        ),
        ("cpu", {"slice-loop", "masked-scatter", "scatter", "lookup-and-slices", "embed"}),
    ],
)
def test_scatter_and_cpu_bench_every_contender_has_a_number(tmp_path, name, expected):
    code, files = run_bench(tmp_path, "--bench", name)
    assert code == 0
    (rows,) = files.values()
    assert {row["contender"] for row in rows} == expected
    assert {row["unit"] for row in rows} == {"us"}


def test_ring_bench_measures_every_option_of_the_ring(tmp_path):
    code, files = run_bench(tmp_path, "--bench", "ring")
    assert code == 0
    (rows,) = files.values()
    metrics = {(row["metric"], row["contender"]) for row in rows}
    for name in ("copy", "1 threads", "2 threads", "pieces of 1 MiB", "pieces of 16 MiB"):
        assert {("done_us", name), ("cpu_us", name)} <= metrics
    rates = {row["contender"]: row for row in rows if row["metric"] == "gb_per_s"}
    assert list(rates) == ["1 producers", "2 producers"]
    rate_of_one = rates["1 producers"]["value"]
    for row in rates.values():
        assert ("cpu_us", row["contender"]) in metrics
        assert row["p20"] <= row["value"] <= row["p80"]
        assert (row["unit"], row["ratio_to"]) == ("GB/s", "1 producers")
        assert row["ratio"] == pytest.approx(row["value"] / rate_of_one, rel=1e-3)
    assert {("done_us", "ring bfloat16"), ("fill_us", "fill, 2 threads")} <= metrics
    assert {("speedup", "2 threads over 1"), ("hidden_share", "ring beside")} <= metrics


def test_ring_bench_producers_that_copy_wrong_values_get_no_number(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_ring, "producers", lambda *arguments: nullcontext(lambda: None))
    code, files = run_bench(tmp_path, "--bench", "ring")
    assert code == 1
    assert not [row for rows in files.values() for row in rows if "producers" in row["contender"]]
    assert "1 producers copied wrong values" in capsys.readouterr().err


def test_ring_bench_draw_has_a_line_of_the_rate_over_producers(tmp_path):
    pytest.importorskip("matplotlib")
    _, files = run_bench(tmp_path, "--bench", "ring")
    (rows,) = files.values()
    _, axes = bench_ring.draw(rows).axes
    (errors,) = axes.containers
    assert list(errors.lines[0].get_xdata()) == [1, 2]
    assert list(errors.lines[0].get_ydata()) == [row["value"] for row in rows if row["metric"] == "gb_per_s"]


def test_cache_bench_draws_times_over_entries_and_over_threads(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    code, files = run_bench(tmp_path, "--bench", "cache")
    assert code == 0
    (rows,) = files.values()
    values = {(row["case"], row["contender"]): row["value"] for row in rows}
    entries, main_job = "50 entries", "main job, 4 rows"
    left, middle, right = bench_cache.draw(rows).axes
    assert [list(errors.lines[0].get_ydata()) for errors in (*left.containers, *middle.containers)] == [
        [values[entries, contender]]
        for contender in ("look-up, 1 threads", "get_many, 512 keys", "miss, put, eviction")
    ]
    line = right.containers[0].lines[0]
    assert list(line.get_xdata()) == [1, 2]
    (row,) = [row for row in rows if row["ratio_to"] == "encode"]
    assert row["ratio"] == pytest.approx(row["value"] / values[main_job, "encode"], rel=1e-3)


def test_cache_bench_measures_get_many(tmp_path):
    recorder = Recorder("cache", tmp_path, torch.device("cpu"))
    case = bench_cache.CASES["smoke"][0]
    list(bench_cache.run_case(case, recorder, Timer(bench_cache.DEVICE, 3)))
    assert [row["case"] for row in recorder.rows if row["contender"] == "get_many, 512 keys"] == [case.name]


def test_cache_bench_full_cases_judge_get_and_release_at_100000_entries():
    assert bench_cache.CacheCase(bench_cache.JUDGED_ENTRIES, (1, 16)) in bench_cache.CASES["full"]
    assert (bench_cache.JUDGED_ENTRIES, bench_cache.LOOK_UP_US) == (100_000, 1.5)


def test_pages_bench_shows_unused_rows_and_encodes_by_page_size(tmp_path):
    code, files = run_bench(tmp_path, "--bench", "pages")
    assert code == 0
    (rows,) = files.values()
    shares = {
        (row["case"], row["contender"]): row["value"] for row in rows if row["metric"] == "unused_share"
    }
    assert shares["17 rows", "page_rows=16"] == pytest.approx(15 / 32)
    assert all(share == 0 for (_, contender), share in shares.items() if contender == "page_rows=1")
    encodes = {row["contender"]: row for row in rows if row["metric"] == "encodes"}
    assert list(encodes) == ["LRU by bytes", "page_rows=1", "page_rows=16", "page_rows=64"]
    assert encodes["page_rows=1"]["ratio"] <= 1.15 < encodes["page_rows=64"]["ratio"]
    assert all(row["target"] is None for row in rows)
    assert any(getattr(case, "is_judged", False) for case in bench_pages.CASES["full"])


def test_plot_result_file_of_the_pages_bench_gives_a_png_file(tmp_path):
    pytest.importorskip("matplotlib")
    run_bench(tmp_path, "--bench", "pages")
    (path,) = tmp_path.glob("*.json")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")


def test_attach_bench_compares_hits_with_a_dict(tmp_path):
    pytest.importorskip("transformers")
    code, files = run_bench(tmp_path, "--bench", "attach")
    assert code == 0
    (rows,) = files.values()
    values = {(row["case"], row["contender"]): row["value"] for row in rows}
    assert set(values) == {(case, name) for case in ("1 images", "3 images") for name in ("dict", "attach")}
    for row in rows:
        assert (row["unit"], row["ratio_to"], row["target"]) == ("us", "dict", None)
        assert row["ratio"] == pytest.approx(row["value"] / values[row["case"], "dict"], rel=1e-3)
    targets = [(case.images, case.target_us) for case in bench_attach.CASES["full"]]
    assert targets == [(1, 90.0), (32, 480.0)]


def test_decode_bench_compares_a_token_of_long_chats_with_short_ones(tmp_path):
    pytest.importorskip("transformers")
    code, files = run_bench(tmp_path, "--bench", "decode")
    assert code == 0
    (rows,) = files.values()
    assert [row["contender"] for row in rows] == ["2 pages", "3 pages", "positions of all tokens"]
    for row in rows:
        assert (row["unit"], row["ratio_to"], row["target"]) == ("us", "2 pages", None)
        assert row["ratio"] == pytest.approx(row["value"] / rows[0]["value"], rel=1e-3)
    assert bench_decode.CASES["full"][0].pages == (30, 300, 600)
    assert (bench_decode.TOKEN_US, bench_decode.FLAT) == (2000, 1.3)


def test_decode_bench_chat_with_wrong_positions_gets_no_number(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    stock = Transcript.positions
    monkeypatch.setattr(Transcript, "positions", lambda *arguments: stock(*arguments) + 1)
    code, files = run_bench(tmp_path, "--bench", "decode")
    assert code == 1
    assert not files
    assert "expected the positions of the stock model, got 132 wrong ones" in capsys.readouterr().err


def test_keys_bench_compares_keys_of_every_source_with_the_encode(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    pytest.importorskip("skimage")
    pytest.importorskip("blake3")
    code, files = run_bench(tmp_path, "--bench", "keys")
    assert code == 0
    (rows,) = files.values()
    steps = [row for row in rows if row["metric"] == "done_us"]
    sources = {f"{source}, {n} threads" for source in ("file", "pixels", "features") for n in (1, 2, 4)}
    assert {row["contender"] for row in steps} == {"encode", "process", "given", "known file"} | sources
    encode = next(row["value"] for row in steps if row["contender"] == "encode")
    for row in steps:
        assert row["ratio"] == pytest.approx(row["value"] / encode, rel=1e-3)
        assert (row["ratio_to"], row["target"]) == ("encode", None)
        assert (row["bytes"] is not None) is (row["contender"] in sources)
    costs = {row["contender"]: row for row in rows if row["metric"] == "key_us"}
    assert set(costs) == {"file", "pixels", "features"}
    assert costs["pixels"]["bytes"] == 320 * 240 * 3
    for row in costs.values():
        assert row["ratio"] == pytest.approx(row["value"] / (encode / 2), rel=1e-3)
    rates = {row["contender"]: row for row in rows if row["metric"] == "gb_per_s"}
    names = ("blake3 alone", "content_key", "KeyThreads")
    threaded = {f"{name}, {n} threads" for name in names for n in (1, 2)}
    assert set(rates) == threaded | {"sha256 alone, 1 threads"}
    for name, row in rates.items():
        raw = f"blake3 alone, {name.split()[-2]} threads"
        assert (row["ratio_to"], row["bytes"], row["target"]) == (raw, 6_000_000, None)
        assert row["ratio"] == pytest.approx(row["value"] / rates[raw]["value"], rel=1e-3)
        assert row["p20"] <= row["value"] <= row["p80"]


def test_keys_bench_draw_has_a_line_of_the_rate_over_threads_per_contender(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("blake3")
    recorder = Recorder("keys", tmp_path, torch.device("cpu"))
    case = key_rates.RateCase(2, 4000, (1, 2))
    recorder.add("2x8x8", "given", "done_us", "us", Sample.of([1.0]), against=("process", 2.0))
    list(bench_keys.run_case(case, recorder, Timer(torch.device("cpu"), 3)))
    _, axes = bench_keys.draw(recorder.rows).axes
    assert [errors.get_label() for errors in axes.containers] == [
        *("KeyThreads", "content_key", "blake3 alone", "sha256 alone")
    ]
    assert [list(errors.lines[0].get_xdata()) for errors in axes.containers] == [[1, 2]] * 3 + [[1]]


def test_keys_bench_wrong_hash_of_a_rate_gets_no_number(tmp_path, monkeypatch):
    pytest.importorskip("blake3")
    recorder = Recorder("keys", tmp_path, torch.device("cpu"))
    case, timer = key_rates.RateCase(1, 4000, (1,)), Timer(torch.device("cpu"), 3)
    monkeypatch.setattr(key_rates, "hash_each", lambda features, count: [bytes(32)])
    with pytest.raises(RuntimeError, match="content_key, 1 threads returned hashes unlike"):
        list(bench_keys.run_case(case, recorder, timer))
    assert not recorder.rows


def test_keys_bench_large_features_are_judged_beside_blake3_alone(tmp_path):
    pytest.importorskip("blake3")
    recorder = Recorder("keys", tmp_path, torch.device("cpu"))
    case = key_rates.RateCase(1, key_rates.JUDGED_BYTES, (1,))
    list(bench_keys.run_case(case, recorder, Timer(torch.device("cpu"), 3)))
    judged = {row["contender"] for row in recorder.rows if row["target"] == 0.9}
    assert judged == {"content_key, 1 threads", "KeyThreads, 1 threads"}
    full = [case for case in bench_keys.CASES["full"] if isinstance(case, key_rates.RateCase)]
    assert [(case.features, case.num_bytes) for case in full] == [(1, 21_600_000), (8, 21_600_000)]


def test_keys_bench_threads_that_return_wrong_keys_get_no_number(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    pytest.importorskip("skimage")
    monkeypatch.setattr(bench_keys, "compute", lambda threads, items, namespace: [bytes(32)] * len(items))
    code, files = run_bench(tmp_path, "--bench", "keys")
    assert code == 1
    assert not [row for rows in files.values() for row in rows if row["metric"] != "gb_per_s"]
    assert "file, 1 threads returned keys unlike content_key's" in capsys.readouterr().err


def test_keys_bench_only_cases_with_the_8b_tower_have_a_target():
    cases = [case for size in ("full", "smoke") for case in bench_keys.CASES[size]]
    judged = {case.name: case.is_judged for case in cases if isinstance(case, bench_keys.KeysCase)}
    assert judged == {"1x1280x720": True, "8x1280x720": True, "2x320x240": False}


def test_policy_bench_compares_every_policy_with_farthest_and_the_bound(tmp_path):
    code, files = run_bench(tmp_path, "--bench", "policy")
    assert code == 0
    (rows,) = files.values()
    policies = set(POLICIES)
    shares = [row for row in rows if row["metric"] == "saved_share" and "+" not in row["case"]]
    assert {row["contender"] for row in shares} == policies | {"farthest", "bound"}
    assert {row["case"].split()[0] for row in shares} == set(TRACES)
    assert all(row["ratio"] is None or row["ratio"] <= 1 for row in shares)
    assert all(row["bytes"] > 0 for row in shares)
    assert {row["contender"] for row in rows if row["metric"] == "written_share"} == policies
    assert {row["contender"] for row in rows if row["metric"] == "touch_us"} == policies
    judged = [row for row in rows if row["meets_target"] is not None]
    assert {(row["contender"], row["metric"]) for row in judged} == {("cost", "saved_share")}


def test_plot_result_file_of_the_policy_bench_gives_a_png_file(tmp_path):
    pytest.importorskip("matplotlib")
    run_bench(tmp_path, "--bench", "policy")
    (path,) = tmp_path.glob("*.json")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")


def test_tune_writes_the_fastest_shape_of_the_blocks_bench_to_the_table(tmp_path):
    pytest.importorskip("triton")
    code, files = run_bench(tmp_path, "--bench", "blocks")
    assert code == 0
    (rows,) = files.values()
    assert {row["contender"] for row in rows} == {"copy", "256x1", "512x1"}
    table = tmp_path / "table.json"
    table.write_text('{"another device": {"64": [64, 2]}}')
    (path,) = tmp_path.glob("blocks-*.json")
    fastest = min((row for row in rows if row["contender"] != "copy"), key=lambda row: row["value"])[
        "contender"
    ]
    shapes = tune.tune([path], table)
    assert shapes[rows[0]["device"]] == {"64": [int(number) for number in fastest.split("x")]}
    assert shapes["another device"] == {"64": [64, 2]}
    assert json.loads(table.read_text()) == shapes


def test_plot_file_with_results_gives_a_png_file_and_an_empty_file_raises(tmp_path):
    pytest.importorskip("matplotlib")
    run_bench(tmp_path, "--bench", "placement")
    (path,) = tmp_path.glob("*.json")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")
    path.write_text("[]")
    with pytest.raises(ValueError, match="no ratio to draw"):
        plot.plot(path)


def test_compare_with_design_on_an_h100_records_the_deviation_of_a_contender(tmp_path):
    recorder = Recorder("placement", tmp_path, torch.device("cpu"))
    recorder.machine = {**recorder.machine, "device": "NVIDIA H100 80GB HBM3"}
    cases = {case.name: case for case in PLACEMENT_CASES["full"]}
    assert set(published.CASES) == set(cases) - {"1x880"}
    for case, name, microseconds in [
        ("9x880", "vllm", 330.0),
        ("9x880", "sglang", 400.0),
        ("1x880", "vllm", 30.0),
        ("9x880", "vitcache", 50.0),
    ]:
        bench_placement.compare_with_design(cases[case], name, Sample.of([microseconds]), recorder)
    assert [(row["contender"], row["value"], row["meets_target"]) for row in recorder.rows] == [
        ("vllm", 0.1, True),
        ("sglang", 0.17526, False),
    ]
    assert published.published_us("NVIDIA H200", "9x880", "vllm") is None
    assert set(published.PUBLISHED_US) <= {"copy", *contenders.CONTENDERS}


def test_sample_of_returns_median_and_20th_and_80th_percentile():
    assert Sample.of([5.0]) == Sample(5.0, 5.0, 5.0)
    assert Sample.of([float(value) for value in range(11)]) == Sample(5.0, 2.0, 8.0)


def test_rounds_us_runs_before_each_call_and_does_not_time_it():
    order = []
    before = {"a": lambda: (order.append("before"), time.sleep(0.02))}
    samples = Timer(torch.device("cpu"), 1).rounds_us(
        {"a": lambda: order.append("a")}, calls=2, before=before
    )
    assert order == ["before", "a"] * 6  # two rounds are not counted
    assert samples["a"].value < 10_000


@pytest.mark.parametrize("method", ["device_us", "host_us"])
def test_device_us_and_host_us_run_before_each_call_and_do_not_time_it(method):
    order = []
    sample = getattr(Timer(torch.device("cpu"), 2), method)(
        lambda: order.append("call"), lambda: (order.append("before"), time.sleep(0.02))
    )
    assert order == ["before", "call"] * 5  # three calls are not counted
    assert sample.value < 10_000


def test_us_per_call_gives_each_thread_its_arguments_and_raises_their_error():
    by_thread = {}

    def call(argument):
        by_thread.setdefault(threading.get_ident(), []).append(argument)

    assert us_per_call(call, list(range(6)), 2) > 0
    assert sorted(by_thread.values()) == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(ZeroDivisionError):
        us_per_call(lambda number: 1 // number, [1, 0], 2)


def test_placement_cases_have_the_sizes_of_the_design():
    sizes = {
        case.name: (case.items * case.rows, case.hidden, case.levels) for case in PLACEMENT_CASES["full"]
    }
    assert sizes["32x880"] == (28_160, 4096, 0)
    assert sizes["512x64"] == (32_768, 3584, 0)
    assert sizes["9x880-deepstack3"] == (7920, 4096, 3)
    scene = contenders.Scene(PLACEMENT_CASES["smoke"][0], torch.device("cpu"))
    assert int(scene.host_mask.sum()) == 21
