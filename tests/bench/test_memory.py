"""`vitcache memory --trace` prints a table of sizes and the smallest size that reaches the target."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitcache import __main__ as command_line
from vitcache.bench.traffic.memory_plot import draw_trace
from vitcache.bench.traffic.memory_results import SizeResult, TraceMemory
from vitcache.bench.traffic.size_text import size_text

# Three passes over eight images of one page each: with seven pages or fewer, LRU has no hit.
ROUNDS = [f'{{"key": "{number}", "tokens": 16, "encode_ms": 10}}' for number in range(8)] * 3


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(ROUNDS))
    return path


def test_memory_prints_the_smallest_size_that_reaches_the_target(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["memory", "--trace", str(trace), "--row-bytes", "400"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "24 images, 8 of them different, 0.2 s of encoding; policy lru"
    assert lines[1].split() == ["memory", "hits", "time", "saved", "at", "most"]
    assert lines[2].split() == ["6.25", "KiB", "0.0%", "0.0%", "12.5%"]
    assert lines[-2].split() == ["50", "KiB", "66.7%", "66.7%", "66.7%"]
    assert lines[-1] == "device_bytes=51200 (50 KiB) reaches 0.9 of the largest saving"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("size", ["0.5KB", "500 B", "500"])
def test_memory_row_bytes_may_be_a_size_with_a_unit(
    size: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["memory", "--trace", str(trace), "--row-bytes", size]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("device_bytes=64000 ")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("0B", "row bytes is '0B', which is 0 bytes: it must be at least 1"),
        ("-1", "expected a number of at least 1, got -1"),
        ("8k", "row bytes is '8k', it must be a number and a unit"),
        ("0.3 B", "row bytes is '0.3 B', which is 0.3 bytes: it must be a whole number of bytes"),
    ],
)
def test_memory_row_bytes_that_is_not_a_size_is_a_usage_error(
    size: str, message: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command_line.main(["memory", "--trace", str(trace), f"--row-bytes={size}"])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_memory_smaller_target_needs_fewer_bytes(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--policy", "s3fifo", "--page-rows", "8", "--target", "0.1"]
    assert command_line.main(["memory", "--trace", str(trace), "--row-bytes", "400", *options]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert int(last.split()[0].removeprefix("device_bytes=")) < 51_200


def test_memory_accepts_the_name_of_a_generated_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vitcache.bench.traffic.trace_memory.LENGTH", 200)
    assert command_line.main(["memory", "--trace", "chats"]) == 0
    assert capsys.readouterr().out.startswith("200 images")


def test_memory_trace_without_a_repeat_prints_that_a_cache_saves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(ROUNDS[0])
    assert command_line.main(["memory", "--trace", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("a cache saves nothing here")


def test_memory_json_of_a_trace_has_the_numbers_of_the_table(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["memory", "--trace", str(trace), "--row-bytes", "400"]
    assert command_line.main([*options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert command_line.main(options) == 0
    table = capsys.readouterr().out
    assert (report["images"], report["different"]) == (24, 8)
    assert (report["policy"], report["row_bytes"], report["page_rows"]) == ("lru", 400, 16)
    assert f"device_bytes={report['device_bytes']} " in table
    for size in report["sizes"]:
        shares = (size["hit_rate"], size["saved"], size["saved_at_most"])
        assert [size_text(size["bytes"]), *(f"{share:.1%}" for share in shares)] in [
            [" ".join(line.split()[:2]), *line.split()[2:]] for line in table.splitlines()
        ]


@pytest.mark.parametrize("name", ["hits.png", "hits.svg"])
def test_memory_plot_of_a_trace_draws_a_figure(trace: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    assert command_line.main(["memory", "--trace", str(trace), "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_figure_of_a_trace_draws_hits_and_savings_over_gib() -> None:
    pytest.importorskip("matplotlib")
    sizes = [SizeResult(gib << 30, gib / 10, gib / 8, gib / 5) for gib in (1, 2, 4)]
    result = TraceMemory("chats", 24, 8, 10.0, "lru", 16, 8192, 0.9, 3 << 30, sizes)
    figure = draw_trace(result)
    [axes] = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["hits"].get_xdata()) == [1, 2, 4]
    assert list(lines["hits"].get_ydata()) == pytest.approx([10, 20, 40])
    assert list(lines["time saved, at most"].get_ydata()) == pytest.approx([20, 40, 80])
    assert figure.get_suptitle() == "chats: 3 GiB reaches 90% of the largest saving"
    assert axes.get_xlabel() == "size of the cache (GiB), log scale"
    assert "(%)" in axes.get_ylabel()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("hits.txt", "argument --plot: expected a file name that ends with .png or .svg, got"),
        ("none/hits.png", "of hits.png does not exist"),
    ],
)
def test_memory_plot_to_a_wrong_file_is_a_usage_error(
    file: str, message: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["memory", "--trace", str(trace), "--plot", str(tmp_path / file)])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_memory_plot_without_matplotlib_names_the_package(
    trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command_line.main(["memory", "--trace", str(trace), "--plot", "hits.png"]) == 1
    message = "vitcache memory needs matplotlib: pip install 'vitcache[demo]'\n"
    assert capsys.readouterr().err == message


def test_memory_wrong_or_missing_trace_prints_one_line_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(ROUNDS[0] + '\n{"key": "b"}')
    assert command_line.main(["memory", "--trace", str(path)]) == 1
    reason = "expected the fields 'key' and 'tokens', got 'key'"
    assert capsys.readouterr().err == f"vitcache memory: {path}, line 2: {reason}\n"
    assert command_line.main(["memory", "--trace", str(tmp_path / "none")]) == 1
    assert os.strerror(errno.ENOENT) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "1.5"], "argument --target: expected a number above 0 and at most 1, got 1.5"),
        (["--row-bytes", "0"], "argument --row-bytes: expected a number of at least 1, got 0"),
        (["--row-bytes", "-5"], "argument --row-bytes: expected a number of at least 1, got -5"),
        (
            ["--row-bytes", "9" * 4000],
            "argument --row-bytes: expected a number of at most 1099511627776, got 999",
        ),
        (["--page-rows", "9" * 5000], "argument --page-rows: expected a whole number, got '999"),
        (["--page-rows", "many"], "argument --page-rows: expected a whole number, got 'many'"),
        (["--target", "most"], "argument --target: expected a number, got 'most'"),
    ],
)
def test_memory_wrong_option_prints_its_name_and_exits_with_2(
    trace: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["memory", "--trace", str(trace), *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("policy", ["lru", "s3fifo", "cost"])
def test_memory_trace_beyond_the_largest_cache_names_the_number_of_pages(
    tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [json.dumps({"key": str(number), "tokens": 1 << 24}) for number in range(65)]
    path.write_text("\n".join(lines))
    assert command_line.main(["memory", "--trace", str(path), "--policy", policy]) == 1
    pages = f"its images take {65 << 20} pages of 16 rows together, expected at most {64 << 20}"
    assert f"{path}: {pages}: raise --page-rows" in capsys.readouterr().err
    assert command_line.main(["memory", "--trace", str(path), "--page-rows", "4096", "--policy", policy]) == 0


def test_memory_does_not_import_torch(trace: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from vitcache.__main__ import main; "
        f"code = main(['memory', '--trace', {str(trace)!r}]); print('torch' in sys.modules, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False 0"
