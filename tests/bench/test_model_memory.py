"""`vitcache memory --model` prints how many images each size of memory holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from tiny_zoo import ZOO

from vitcache import __main__ as command_line
from vitcache.bench.traffic import model_memory
from vitcache.bench.traffic.known_models import KNOWN_MODELS
from vitcache.bench.traffic.memory_plot import draw_models
from vitcache.bench.traffic.memory_results import Held, ImageMemory, ModelMemory
from vitcache.bench.traffic.size_text import size_text

pytestmark = pytest.mark.transformers
FILE = Path(__file__).parents[2] / "bench/results/memory.json"


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
    pages = [-(-count // 20) for count in rows]
    name = dtype or "float16"
    assert lines[0].split() == [
        "image",
        "rows",
        "entries",
        "pages",
        "size",
        *["in", "1", "MiB", "in", "10", "MiB"],
    ]
    title = " ".join(lines[1:-4])
    assert title.startswith(f"{tmp_path}: rows of {hidden} {name}, Qwen2VLImageProcessor (default settings)")
    for line, image, count, needed in zip(lines[-4:-2], ("320x160", "160x160"), rows, pages, strict=True):
        held = [str((mib << 20) // page // needed) for mib in (1, 10)]
        size = size_text(needed * page).split()
        assert line.split() == [image, str(count), "1", str(needed), *size, *held]
    assert lines[-1].startswith("default settings: ")


def test_memory_of_a_model_of_tiles_counts_the_pages_of_each_tile(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert memory("internvl", "--images", "900x450", "--page-rows", "100", "--device-bytes", "1GB") == 0
    tile = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("900x450 "))
    assert tile.split()[1:4] == ["768", "3", "9"]  # rows of two tiles and an overview, entries, pages


def test_memory_of_several_models_prints_a_group_each_within_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = [f"{gib}GiB" for gib in (1, 2, 4, 8, 16, 32)]  # more columns than one table has
    assert memory("qwen2_vl", "--model", "llava", "--images", "320x320", "--device-bytes", *sizes) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if ": rows of" in line] == ["qwen2_vl", "llava"] * 2
    assert [line.count(" in ") for line in lines if line.startswith("image ")] == [4, 2]
    assert max(map(len, lines)) <= 80


def test_memory_json_of_models_has_rows_pages_and_held_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory("llava", "--images", "640x480", "--device-bytes", "1GiB", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    [model] = report["models"]
    [image] = model["images"]
    assert (model["model"], model["checkpoint"]) == ("llava", None)
    assert image["pages"] == -(-image["rows"] // report["page_rows"])
    page_bytes = report["page_rows"] * model["row_width"] * 2
    assert image["bytes"] == image["pages"] * page_bytes
    assert image["held"] == [{"bytes": 1 << 30, "images": (1 << 30) // image["bytes"]}]


def test_memory_plot_of_models_draws_images_over_gib(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "images.png"
    assert memory("llava", "--images", "640x480", "--plot", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_figure_of_models_has_a_line_of_images_for_each_model() -> None:
    pytest.importorskip("matplotlib")
    held = [Held(gib << 30, 10 * gib) for gib in (1, 8)]
    image = ImageMemory("640x480", 576, 1, 36, 1 << 20, held)
    dtypes = {"a": "float16", "b": "bfloat16"}
    results = [ModelMemory(name, None, "P", True, 4096, dtype, [image]) for name, dtype in dtypes.items()]
    figure = draw_models(results)
    [axes] = figure.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert all(list(line.get_xdata()) == [1, 8] for line in axes.lines)
    assert all(list(line.get_ydata()) == [10, 80] for line in axes.lines)
    assert list(axes.get_xticks()) == [1, 8]
    assert figure.get_suptitle() == "1 GiB holds 10 images of 640x480"
    assert figure.texts[-1].get_text().endswith("rows of float16 or bfloat16")


@pytest.mark.filterwarnings("error")
def test_figure_of_models_is_drawn_if_no_size_holds_an_image() -> None:
    pytest.importorskip("matplotlib")
    image = ImageMemory("640x480", 576, 1, 36, 1 << 20, [Held(1 << 10, 0)])
    figure = draw_models([ModelMemory("a", None, "P", True, 4096, "float16", [image])])
    assert figure.get_suptitle() == "1 KiB holds 0 images of 640x480"
    assert figure.axes[0].get_ylabel() == "images in the cache"


def file_models() -> dict[str, Any]:
    """The models of the result file, from which the tables of the pages are made."""
    return {model["model"]: model for model in json.loads(FILE.read_text())["models"]}


def test_result_file_has_every_known_model_with_its_checkpoint() -> None:
    found = {name: model["checkpoint"] for name, model in file_models().items()}
    assert found == {name: model.checkpoint for name, model in KNOWN_MODELS.items()}


@pytest.mark.parametrize("name", ["Gemma-3-12B", "InternVL3-8B", "GLM-4.1V-9B"])
def test_result_file_equals_a_new_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory(name, "--json") == 0
    [model] = json.loads(capsys.readouterr().out)["models"]
    expected = file_models()[name]
    assert (model["images"], model["row_width"]) == (expected["images"], expected["row_width"])


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


def test_memory_without_a_model_prints_every_known_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted: list[str] = []

    def count(name: str, *_: object) -> ModelMemory:
        counted.append(name)
        image = ImageMemory("640x480", 576, 1, 36, 1 << 20, [Held(1 << 30, 1)])
        return ModelMemory(name, None, "P", True, 4096, "float16", [image])

    monkeypatch.setattr(model_memory, "measure", count)
    assert command_line.main(["memory", "--device-bytes", "1GiB"]) == 0
    assert counted == list(KNOWN_MODELS)
    text = capsys.readouterr().out
    assert all(f"{name}: rows of" in text for name in KNOWN_MODELS)


def test_memory_without_a_source_refuses_an_option_of_traces(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["memory", "--target", "0.5"])
    assert exit_.value.code == 2
    assert "argument --target: not allowed without argument --trace" in capsys.readouterr().err


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
