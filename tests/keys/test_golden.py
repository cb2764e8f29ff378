"""The keys of 200 inputs for each algorithm, in golden/blake3.json and golden/sha256.json, never change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import golden_keys
import pytest
from golden_cases import CASES, IN_NUMPY, IN_TORCH_ONLY
from golden_keys import ALGORITHMS, key_of, read_golden

from vitcache.keys import digests
from vitcache.keys.content import FORM

NUM_CASES = 200
SUPPORT = Path(golden_keys.__file__).parent


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_of_all_described_inputs_equal_the_golden_keys(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "ALGORITHM", algorithm)
    cases = read_golden(algorithm)["cases"]
    changed = [case["name"] for case in cases if key_of(case["input"]).hex() != case["key"]]
    assert (len(cases), changed) == (NUM_CASES, [])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_golden_file_contains_every_case_of_the_table_once(algorithm: str) -> None:
    golden = read_golden(algorithm)
    assert (golden["version"], golden["algorithm"]) == (FORM, algorithm)
    assert [(case["name"], case["input"]) for case in golden["cases"]] == list(CASES.items())
    assert len(golden["cases"]) == len({case["key"] for case in golden["cases"]}) == NUM_CASES


def test_golden_keys_of_the_algorithms_differ() -> None:
    keys = {case["key"] for algorithm in ALGORITHMS for case in read_golden(algorithm)["cases"]}
    assert len(keys) == 2 * NUM_CASES


def test_golden_cases_cover_every_dtype_call_and_kind_of_value() -> None:
    def parts(value: Any) -> list[Any]:
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [value, *(part for inner in values for part in parts(inner))]

    objects = [part for part in parts(CASES) if isinstance(part, dict)]
    assert {part["array"] for part in objects if "array" in part} == {*IN_NUMPY, *IN_TORCH_ONLY}
    calls = {"content_key", "key_from_id", "fold_keys", "part_keys", "Namespace.digest"}
    assert {part["call"] for part in objects if "call" in part} == calls
    assert {"int", "float", "hex", "tuple", "dict", "bytes", "array", "Namespace"} <= {
        name for part in objects for name in part
    }


def test_golden_keys_hold_in_processes_with_other_hash_seeds_and_without_blake3() -> None:
    script = (
        "import sys\n"
        "if sys.argv[1] == 'sha256': sys.modules['blake3'] = None\n"
        "from golden_keys import digests, key_of, read_golden\n"
        "assert digests.ALGORITHM == sys.argv[1]\n"
        "cases = read_golden(sys.argv[1])['cases']\n"
        "print(sum(key_of(case['input']).hex() == case['key'] for case in cases))\n"
    )
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for algorithm, seed in (("sha256", "1"), ("blake3", "2")):
        done = subprocess.run(
            [sys.executable, "-c", script, algorithm],
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout == f"{NUM_CASES}\n", done.stderr


def test_write_golden_adds_cases_and_refuses_to_change_or_drop_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_keys, "FOLDER", tmp_path / "golden")
    monkeypatch.setattr(digests, "ALGORITHM", "blake3")  # so that pytest restores it
    few = dict(list(CASES.items())[:3])
    monkeypatch.setattr(golden_keys, "CASES", few)
    golden_keys.write_golden()
    more = dict(list(CASES.items())[:5])
    monkeypatch.setattr(golden_keys, "CASES", more)
    golden_keys.write_golden()
    written = read_golden("sha256")["cases"]
    assert [case["name"] for case in written] == list(more)
    assert key_of(few["tensor of int8"]).hex() in {case["key"] for case in written}
    monkeypatch.setattr(golden_keys, "CASES", more | {"tensor of int8": CASES["tensor of bool"]})
    with pytest.raises(SystemExit, match="the key of 'tensor of int8' has changed"):
        golden_keys.write_golden()
    monkeypatch.setattr(golden_keys, "CASES", few)
    with pytest.raises(SystemExit, match=r"the case 'tensor of int32' of blake3\.json is missing"):
        golden_keys.write_golden()
    assert read_golden("sha256")["cases"] == written
