"""The families of the demo: each one runs, its logits are equal, and its images are encoded once."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from vitcache.demo import add_arguments, run
from vitcache.demo.conversation import build_prompt
from vitcache.demo.families import FAMILIES, LARGE
from vitcache.demo.family import Family
from vitcache.demo.turns import build, build_sides, measure_turn, one_thread, process_photos

pytestmark = pytest.mark.transformers

TURNS = 2

each_family = pytest.mark.parametrize("name", FAMILIES)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def known(name: str) -> Family:
    """Return a family, if the installed packages are enough for it."""
    family = FAMILIES[name]
    try:
        family.make_config()
        family.make_processor()
    except ImportError as error:
        pytest.skip(" ".join(str(error).split()))
    return family


@each_family
def test_demo_of_each_family_has_equal_logits_and_encodes_each_image_once(name: str, tmp_path: Path) -> None:
    family = known(name)
    path = tmp_path / "rows.json"
    assert run(parse("--model", name, "--size", "tiny", "--turns", str(TURNS), "--json", str(path))) == 0
    report = json.loads(path.read_text())
    assert report["model"] == family.title
    for turn, row in enumerate(report["rows"], start=1):
        assert (row["encoded_stock"], row["encoded"], row["encoded_attach"]) == (turn, 1, 1)
        assert (row["hits"], row["hits_attach"]) == (turn - 1, turn - 1)
        assert row["equal"]
        assert row["equal_attach"]
        assert (row["placed_calls_attach"], row["unplaced_calls_attach"]) == (1, {})


@each_family
def test_logits_of_each_family_depend_on_the_cached_rows(name: str) -> None:
    family = known(name)
    with torch.no_grad(), one_thread():
        stock = build(family, torch.device("cpu"))
        processor, pictures = process_photos(family, stock, 1)
        sides = build_sides(stock, processor, pictures)
        prompt = build_prompt(pictures, stock.config)
        assert measure_turn(sides, prompt).equal
        key = sides.cached.key(pictures[0])
        lease = sides.cached.cache.get(key)
        assert lease is not None
        with lease:
            wrong = lease.to_tensor() + 1
        assert sides.cached.cache.put(key, wrong)
        assert not measure_turn(sides, prompt).equal


def test_unknown_family_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parse("--model", "spam")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"vitcache demo: error: --model must be one of {', '.join(FAMILIES)}, got spam\n"


@pytest.mark.parametrize("lacks", ["config_class", "processor_class"])
def test_family_that_the_installed_transformers_lacks_is_refused(
    lacks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FAMILIES, "gemma3", replace(FAMILIES["gemma3"], **{lacks: "SpamClass"}))
    assert run(parse("--model", "gemma3", "--turns", "1")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("vitcache demo: error: --model gemma3: transformers ")
    assert last.endswith(" has no SpamClass")


def test_size_8b_of_a_family_without_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(LARGE) == ["qwen3_vl"]
    assert run(parse("--model", "gemma3", "--size", "8b")) == 2
    assert "--size 8b is a size of qwen3_vl, --model is gemma3" in capsys.readouterr().err
