"""The demo: a conversation through the stock model and through vitcache, its files and its errors."""

import argparse
import contextlib
import importlib.util
import inspect
import io
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from vitcache import content_key
from vitcache.demo import add_arguments, run

pytest.importorskip("transformers")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel  # noqa: E402

from vitcache.adapters.model_outputs import image_rows  # noqa: E402
from vitcache.adapters.session import Session  # noqa: E402
from vitcache.demo import chat_table, stock_side, turns, vitcache_side  # noqa: E402
from vitcache.demo.conversation import Picture, build_prompt  # noqa: E402
from vitcache.demo.families import FAMILIES  # noqa: E402
from vitcache.demo.model import random_model  # noqa: E402
from vitcache.demo.photos import MAX_PHOTOS, load_photos  # noqa: E402
from vitcache.demo.row import TIMES, Row  # noqa: E402
from vitcache.demo.turns import (  # noqa: E402
    Sides,
    build,
    build_sides,
    empty_caches,
    measure_turn,
    one_thread,
    process_photos,
    time_turn,
    warm_up,
)

pytestmark = pytest.mark.transformers

TURNS, RUNS = 3, 2


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


class Result(NamedTuple):
    code: int
    stdout: str
    report: dict[str, Any]
    plot: Path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("demo")
    paths = folder / "rows.json", folder / "chat.png"
    options = ("--size", "tiny", "--turns", str(TURNS), "--repeats", str(RUNS))
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = run(parse(*options, "--json", str(paths[0]), "--plot", str(paths[1])))
    return Result(code, stdout.getvalue(), json.loads(paths[0].read_text()), paths[1])


FAMILY = FAMILIES["qwen3_vl"]


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    with torch.no_grad(), one_thread():
        _, pictures = process_photos(FAMILY, build(FAMILY, torch.device("cpu")), TURNS)
    return pictures


@pytest.fixture
def sides(pictures: list[Picture]) -> Iterator[Sides]:
    with torch.no_grad(), one_thread():
        yield build_sides(build(FAMILY, torch.device("cpu")), FAMILY.make_processor(), pictures)


def measure(sides: Sides, pictures: list[Picture]) -> Row:
    return measure_turn(sides, build_prompt(pictures, sides.stock.model.config))


def test_each_turn_encodes_one_image_and_hits_the_rest_stock_encodes_all(result: Result) -> None:
    rows = result.report["rows"]
    assert [row["turn"] for row in rows] == [1, 2, 3]
    assert [row["images"] for row in rows] == [1, 2, 3]
    assert [row["encoded_stock"] for row in rows] == [1, 2, 3]
    assert [(row["encoded"], row["hits"]) for row in rows] == [(1, 0), (1, 1), (1, 2)]
    assert [(row["encoded_attach"], row["hits_attach"]) for row in rows] == [(1, 0), (1, 1), (1, 2)]
    assert [row["equal"] for row in rows] == [True] * TURNS
    assert [(row["placed_calls_attach"], row["unplaced_calls_attach"]) for row in rows] == [(1, {})] * TURNS
    assert result.code == 0


def test_warm_up_runs_every_stock_batch_size_and_empties_the_caches(
    sides: Sides, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    stock = sides.stock.model.get_image_features

    def recorded(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> Any:
        batches.append(len(image_grid_thw))
        return stock(pixel_values, image_grid_thw)

    monkeypatch.setattr(sides.stock.model, "get_image_features", recorded)
    warm_up(sides, pictures)
    assert batches == [1, 2, 3]
    assert len(sides.cached.cache) == len(sides.attached.attachment.cache) == 0


def test_json_report_has_the_stable_keys_and_finite_numbers(result: Result) -> None:
    assert isinstance(result.report["device"], str)
    for row in result.report["rows"]:
        for key in ("turn", "images", "encoded_stock", "encoded", "hits"):
            assert type(row[key]) is int, key
        for key in ("vision_ms_stock", "vision_ms", "ttft_ms_stock", "ttft_ms"):
            assert 0 < row[key] < float("inf"), key
        assert type(row["equal"]) is bool
        assert row["vision_ms"] < row["ttft_ms"]
        assert row["spread_stock"] >= 0


def test_pixel_bytes_are_all_images_for_stock_and_the_new_one_for_vitcache(
    result: Result, pictures: list[Picture]
) -> None:
    sizes = [picture.pixel_values.nbytes for picture in pictures]
    assert [row["pixel_bytes"] for row in result.report["rows"]] == sizes
    assert [row["pixel_bytes_attach"] for row in result.report["rows"]] == sizes
    assert [row["pixel_bytes_stock"] for row in result.report["rows"]] == [sum(sizes[:n]) for n in (1, 2, 3)]


def test_table_has_a_line_per_turn_of_at_most_80_columns(result: Result) -> None:
    lines = result.stdout.splitlines()
    turns = [line.split() for line in lines if line.split()[-1:] == ["equal"]]
    assert [turn[:5] for turn in turns] == [
        ["1", "1", "1", "1", "1"],
        ["2", "2", "2", "1", "1"],
        ["3", "3", "3", "1", "1"],
    ]
    for turn, row in zip(turns, result.report["rows"], strict=True):
        ttft_ms = [row[name] for name in ("ttft_ms_stock", "ttft_ms_attach", "ttft_ms")]
        assert [float(text) for text in turn[5:8]] == [pytest.approx(value, abs=0.5) for value in ttft_ms]
    assert max(map(len, lines)) <= 80


def test_results_in_words_have_encodes_logits_and_placed_calls(result: Result) -> None:
    words = " ".join(result.stdout.split())
    assert "In 3 turns the stock model encoded 6 images, attach 3." in words
    assert "In turn 3 attach found 2 images in its cache" in words
    assert "Logits were equal in every turn" in words
    assert f"With attach, {TURNS} of {TURNS} forward calls were placed:" in words
    assert words.index("Next steps") > words.index("Results")


def test_times_are_medians_of_all_runs(result: Result) -> None:
    for row in result.report["rows"]:
        for name in TIMES:
            assert len(row["samples"][name]) == RUNS
            assert min(row["samples"][name]) <= row[name] <= max(row["samples"][name])


def test_time_turn_with_another_number_of_encodes_than_the_first_run_raises(
    sides: Sides, pictures: list[Picture]
) -> None:
    prompt = build_prompt(pictures[:1], sides.stock.model.config)
    first = measure_turn(sides, prompt)
    with pytest.raises(
        RuntimeError, match="expected 1 and 1 encodes in turn 1, as in the first run, got 0 and 0"
    ):
        time_turn(sides, prompt, first)
    empty_caches(sides)
    assert set(time_turn(sides, prompt, first)) == set(TIMES)


def test_markdown_table_has_a_line_per_turn_and_the_sums(result: Result) -> None:
    lines = chat_table.markdown(result.report)
    assert lines[0].count("|") == lines[1].count("|") == 7
    assert [line.split(" | ")[1:3] for line in lines[2:5]] == [["1", "1"], ["2", "1"], ["3", "1"]]
    assert "6 images encoded by the stock model, 3 by the attached model" in lines[-1]
    assert f"medians of {RUNS} runs" in lines[-1]


def test_plot_is_a_png_image(result: Result) -> None:
    with Image.open(result.plot) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("L").get_flattened_data())) > 10


def test_measure_turn_with_a_wrong_cached_row_is_unequal(sides: Sides, pictures: list[Picture]) -> None:
    assert measure(sides, pictures[:1]).equal
    rows = image_rows(stock_side.encode_alone(sides.stock.model, pictures[0]))
    rows[5, 7] += 1
    assert sides.cached.cache.put(sides.cached.key(pictures[0]), rows)
    row = measure(sides, pictures[:2])
    assert row.hits == 1
    assert row.equal_attach
    assert not row.equal


def test_measure_turn_with_a_wrong_deepstack_column_is_unequal(sides: Sides, pictures: list[Picture]) -> None:
    rows = image_rows(stock_side.encode_alone(sides.stock.model, pictures[0]))
    rows[5, -1] += 1
    assert sides.cached.cache.put(sides.cached.key(pictures[0]), rows)
    assert not measure(sides, pictures[:1]).equal


def test_run_with_unequal_logits_names_the_turns_and_returns_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vitcache_side, "image_rows", lambda features: image_rows(features) * 1.01)
    assert run(parse("--size", "tiny", "--turns", "2", "--repeats", "1")) == 1
    assert "Logits differed in turn 1, 2." in capsys.readouterr().out


def test_measure_turn_leaves_the_stock_model_unchanged(sides: Sides, pictures: list[Picture]) -> None:
    model = sides.stock.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    for turn in (1, 2):
        assert measure(sides, pictures[:turn]).equal
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    for module in model.modules():
        values = [
            *vars(module).values(),
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
        ]
        assert not any(type(value).__module__.startswith("vitcache") for value in values)


@pytest.mark.parametrize("takes_encoder_outputs", [True, False])
def test_run_sets_no_attribute_or_hook_on_the_stock_model(
    monkeypatch: pytest.MonkeyPatch, takes_encoder_outputs: bool
) -> None:
    """Only the model's own forward sets an attribute. The test watches the run from the model's build on."""
    if takes_encoder_outputs:
        if "mm_encoder_outputs" not in inspect.signature(Qwen3VLModel.forward).parameters:
            pytest.skip("this forward takes no encoder outputs")
    else:
        monkeypatch.setattr(stock_side, "takes_encoder_outputs", lambda model: False)
    built: list[torch.nn.Module] = []
    watched: set[int] = set()
    observed: list[str] = []

    def build_and_watch(*args: Any) -> Any:
        built.append(random_model(*args))
        watched.update(map(id, built[0].modules()))
        return built[0]

    def watch(name: str) -> None:
        original = getattr(torch.nn.Module, name)

        def watching(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if id(module) in watched:
                observed.append(f"{name} {args[0]}")
            return original(module, *args, **kwargs)

        monkeypatch.setattr(torch.nn.Module, name, watching)

    for name in ("__setattr__", "__delattr__", "register_forward_hook", "register_forward_pre_hook"):
        watch(name)
    monkeypatch.setattr(turns, "random_model", build_and_watch)
    assert run(parse("--size", "tiny", "--turns", "2", "--repeats", "1")) == 0
    assert set(observed) == {"__setattr__ rope_deltas"}
    assert not {"get_image_features", "get_video_features"} & set(vars(built[0].model))


@pytest.mark.parametrize("side", ["cached", "attached"])
def test_measure_turn_raises_if_the_tower_ran_on_more_images_than_counted(
    sides: Sides, pictures: list[Picture], side: str
) -> None:
    tower = getattr(sides, side).model.model.visual
    with torch.no_grad():
        tower(pictures[0].pixel_values, grid_thw=pictures[0].features["image_grid_thw"])
    with pytest.raises(
        RuntimeError, match="expected 1 images in the vision tower, as counted by the caller, got 2"
    ):
        measure(sides, pictures[:1])


def test_measure_turn_raises_if_attach_moves_pixels_on_a_cpu(
    sides: Sides, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower's device is "cpu:0", which differs from the pixels' "cpu", so that the pixels are copied."""
    monkeypatch.setattr(Session, "tower_device", lambda session: torch.device("cpu", 0))
    size = pictures[0].pixel_values.nbytes
    with pytest.raises(
        RuntimeError, match=f"attach counted {size} bytes of moved pixels, its vision tower got {size}"
    ):
        measure(sides, pictures[:1])


def test_stock_model_shares_no_weight_with_the_other_sides(sides: Sides) -> None:
    addresses = {tensor.data_ptr() for tensor in sides.stock.model.parameters()}
    assert addresses.isdisjoint(tensor.data_ptr() for tensor in sides.cached.model.parameters())
    assert addresses.isdisjoint(tensor.data_ptr() for tensor in sides.attached.model.parameters())
    assert sides.cached.model.model is not sides.attached.model.model


def test_both_ways_to_pass_features_to_the_stock_forward_agree(
    sides: Sides, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = build_prompt(pictures, sides.stock.model.config)
    expected = sides.stock.answer_one_at_a_time(prompt)
    monkeypatch.setattr(stock_side, "takes_encoder_outputs", lambda model: False)
    assert torch.equal(sides.stock.answer_one_at_a_time(prompt), expected)
    assert "get_image_features" not in vars(sides.stock.model.model)


def test_load_photos_returns_distinct_photographs() -> None:
    photos = load_photos(MAX_PHOTOS)
    assert len({photo.name for photo in photos}) == MAX_PHOTOS
    assert len({content_key(photo.pixels) for photo in photos}) == MAX_PHOTOS
    assert all(photo.pixels.shape[2] == 3 and photo.pixels.flags.c_contiguous for photo in photos)


@pytest.mark.parametrize("count", [0, -1, MAX_PHOTOS + 1])
def test_load_photos_with_a_count_out_of_range_raises(count: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to {MAX_PHOTOS}, the number of photographs, got {count}"):
        load_photos(count)


def test_build_prompt_repeats_the_prompt_before_and_adds_one_image(
    pictures: list[Picture], sides: Sides
) -> None:
    config = sides.stock.model.config
    prompts = [build_prompt(pictures[:turn], config) for turn in (1, 2, 3)]
    for turn, prompt in enumerate(prompts, start=1):
        ids = prompt.input_ids[0].tolist()
        assert ids.count(config.image_token_id) == sum(picture.num_rows for picture in pictures[:turn])
        assert ids.count(config.vision_start_token_id) == turn
        assert max(ids) < config.text_config.vocab_size
        assert torch.equal(prompt.token_types.bool(), prompt.input_ids == config.image_token_id)
        assert len(prompt.pixel_values) == prompt.features["image_grid_thw"].prod(-1).sum()
    for shorter, longer in itertools.pairwise(prompts):
        assert torch.equal(longer.input_ids[:, : shorter.input_ids.shape[1]], shorter.input_ids)


def test_run_with_repeats_below_1_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "--repeats=0").endswith("--repeats must be at least 1, got 0")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the line that a run prints to stderr if it is refused before any work."""
    assert run(parse(*arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("turns", [0, -3, MAX_PHOTOS + 1])
def test_run_with_turns_out_of_range_is_refused(capsys: pytest.CaptureFixture[str], turns: int) -> None:
    line = refused(capsys, f"--turns={turns}")
    assert f"--turns must be from 1 to {MAX_PHOTOS}" in line
    assert line.endswith(f"got {turns}")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_run_with_a_directory_or_a_missing_parent_as_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    pytest.importorskip("matplotlib")
    missing = tmp_path / "missing" / "file"
    assert f"{option} {missing}: the directory {missing.parent} does not exist" in refused(
        capsys, option, str(missing)
    )
    assert f"{option} must be a file, {tmp_path} is a directory" in refused(capsys, option, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_run_with_a_file_in_an_unwritable_folder_is_refused(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """Tests may run as root, who may write into any folder. In /proc no user can make a file."""
    assert f"{option} /proc/x.png: cannot be written: " in refused(capsys, option, "/proc/x.png")


def test_run_with_one_file_for_both_outputs_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "--json", str(tmp_path / "x"), "--plot", "x")
    assert f"--json and --plot must be different files, both are {tmp_path / 'x'}" in line
    assert list(tmp_path.iterdir()) == []


def test_run_that_is_refused_leaves_files_and_links_unchanged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept, link = tmp_path / "kept.json", tmp_path / "link.png"
    kept.write_text("kept")
    link.symlink_to(tmp_path / "nowhere.png")
    assert "--turns must be" in refused(capsys, "--json", str(kept), "--plot", str(link), "--turns", "0")
    assert kept.read_text() == "kept"
    assert link.is_symlink()
    assert set(tmp_path.iterdir()) == {kept, link}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_run_on_a_full_disk_prints_the_table_and_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parse("--size", "tiny", "--turns", "1", "--repeats", "1", "--json", "/dev/full")) == 2
    captured = capsys.readouterr()
    assert "In 1 turn the stock model" in captured.out
    assert "the results could not be written" in captured.err.splitlines()[-1]


def test_run_with_size_8b_without_a_gpu_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--size 8b needs a CUDA GPU, found no GPU" in refused(capsys, "--size", "8b")


def test_run_with_missing_packages_names_them_and_the_install_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert importlib.util.find_spec("transformers") is None
    line = refused(capsys, "--plot", "unwritten.png")
    assert "not installed: transformers, matplotlib; run: pip install 'vitcache[demo]'" in line


def test_demo_interrupted_prints_no_traceback() -> None:
    command = [sys.executable, "-m", "vitcache", "demo", "--size", "tiny", "--turns", "20"]
    # If a shell runs the tests in the background, they and their children ignore interrupts.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    progress = []
    for line in process.stderr:
        progress.append(line)
        if line.startswith("warming up"):
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    # If the interrupt arrives while Python compiles code from a string, the signal itself ends Python.
    assert process.returncode in (130, -signal.SIGINT), "".join(progress) + stderr
    assert "Traceback" not in "".join(progress) + stderr + stdout
    assert "interrupted" in stderr
