"""`python -m vitcache memory --model` prints how many images each size of memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from tiny_zoo import ZOO

from vitcache import __main__ as command_line
from vitcache.bench.traffic.size_text import size_text

pytestmark = pytest.mark.transformers


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """The configuration of a tiny model, saved in `tmp_path`."""
    config = ZOO["qwen2_vl"].build().config
    config.dtype = "float16"
    config.save_pretrained(tmp_path)
    return config


def memory(*arguments: str) -> int:
    return command_line.main(["memory", "--model", *arguments])


@pytest.mark.parametrize(("dtype", "itemsize"), [(None, 2), ("float32", 4)])
def test_memory_of_a_model_prints_the_images_that_each_size_holds(
    config: Any, tmp_path: Path, dtype: str | None, itemsize: int, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dtype", dtype] if dtype else []
    sizes = ["--device-bytes", "1MiB", "10MiB", "--images", "320x160", "160x160"]
    assert memory(str(tmp_path), *sizes, *options, "--page-rows", "20") == 0
    lines = capsys.readouterr().out.splitlines()
    hidden = config.text_config.hidden_size
    side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    page = 20 * hidden * itemsize
    rows = [width * height // side**2 for width, height in ((320, 160), (160, 160))]
    wide, square = (-(-count // 20) for count in rows)
    assert lines[0].startswith("images as Qwen2VLImageProcessor")
    name = dtype or "float16"
    assert lines[-6:] == [
        f"320x160: {rows[0]} rows of {hidden} {name} elements, {wide} pages, {size_text(wide * page)}",
        f"160x160: {rows[1]} rows of {hidden} {name} elements, {square} pages, {size_text(square * page)}",
        f"1 MiB hold {(1 << 20) // page // wide} images of 320x160",
        f"1 MiB hold {(1 << 20) // page // square} images of 160x160",
        f"10 MiB hold {(10 << 20) // page // wide} images of 320x160",
        f"10 MiB hold {(10 << 20) // page // square} images of 160x160",
    ]


def test_memory_of_a_model_of_tiles_counts_the_pages_of_each_tile(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert memory("internvl", "--images", "900x450", "--page-rows", "100", "--device-bytes", "1GB") == 0
    tile = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("900x450: "))
    assert tile.startswith("900x450: 3 entries with 768 rows of ")  # two tiles and an overview of 256 rows
    assert ", 9 pages, " in tile


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("bert", "BertModel has no get_image_features, so it cannot be attached"),
        ("some/model", "is not a file, a folder, a model type of transformers, or a checkpoint in the local"),
        (
            "fuyu",
            "fuyu: its rows are not counted, because not its image processor, but the model's processor",
        ),
        ("gemma4", "gemma4: its configuration has no vision_config; this is the default configuration of"),
        ("gemma3", "this is the default configuration of its class: give the config.json of a checkpoint"),
    ],
)
def test_memory_of_a_model_without_an_answer_prints_one_line_and_exits_with_1(
    model: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert memory(model) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("vitcache memory: ")
    assert reason in line


def test_memory_of_a_wrong_config_prints_one_line_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{")
    assert memory(str(tmp_path)) == 1
    assert capsys.readouterr().err.startswith(f"vitcache memory: {tmp_path / 'config.json'} is not JSON")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device-bytes", "8"], "argument --device-bytes: the size is '8', it must be a number and a unit"),
        (["--device-bytes", "0B"], "argument --device-bytes: the size is '0B'"),
        (["--images", "1280"], "expected a width and a height from 1 to 16384 such as 1280x720, got '1280'"),
        (["--images", "0x720"], "argument --images: expected a width and a height"),
        (["--images", "99999x1"], "argument --images: expected a width and a height"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--trace", "chats"], "argument --trace: not allowed with argument --model"),
        (["--row-bytes", "1"], "argument --row-bytes: not allowed with argument --model"),
        (["--policy", "s3fifo"], "argument --policy: not allowed with argument --model"),
        (["--target", "0.1"], "argument --target: not allowed with argument --model"),
    ],
)
def test_memory_of_a_model_with_a_wrong_option_exits_with_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        memory("qwen2_vl", *options)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_memory_without_a_trace_and_a_model_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["memory"])
    assert exit_.value.code == 2
    assert "one of the arguments --trace --model is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--images", "32x32"], ["--device-bytes", "1GiB"], ["--dtype", "float32"]]
)
def test_memory_of_a_trace_with_an_option_of_models_exits_with_2(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["memory", "--trace", "chats", *option])
    assert exit_.value.code == 2
    assert f"argument {option[0]}: not allowed with argument --trace" in capsys.readouterr().err
