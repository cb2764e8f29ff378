"""The items of the probe at smoke size, and their verdicts on a GPU, which the tests imitate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vitcache import PlacementTable
from vitcache.bench import probe
from vitcache.bench.probes import copies, graphs, launches
from vitcache.bench.probes.findings import Finding, Subject

SUBJECT = Subject(torch.device("cpu"))


def verdicts(findings: Iterator[Finding]) -> dict[str, str]:
    with probe.kernels_everywhere(SUBJECT):
        return {finding.item: finding.verdict for finding in findings}


def test_graph_items_check_the_values_of_replays() -> None:
    assert verdicts(graphs.first_use(SUBJECT)) == {
        "capture before warm_up": "left out",
        "capture after warm_up": "ok",
    }
    assert verdicts(graphs.update_during_replay(SUBJECT)) == {
        "update during a replay": "left out",
        "replay after a refused update": "ok",
        "update after a replay": "ok",
    }


def test_graph_items_find_wrong_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "scatter_embeddings", lambda out, *arguments: out.fill_(2))
    assert verdicts(graphs.first_use(SUBJECT))["capture after warm_up"] == "BAD"
    assert verdicts(graphs.update_during_replay(SUBJECT))["update after a replay"] == "BAD"


def test_launch_items_time_every_offset_and_every_form_of_rows() -> None:
    offsets = verdicts(launches.odd_ids(SUBJECT))
    assert len(offsets) == 7
    assert offsets.pop("no kernel is loaded for an offset") == "ok"
    assert set(offsets.values()) == {"number"}
    assert verdicts(launches.host_time(SUBJECT)) == dict.fromkeys(
        ("issue one span", "issue 6 packed", "issue 6 fresh leases"), "number"
    )


def test_copy_items_give_rates_and_find_wrong_values(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdicts(copies.host_rows(SUBJECT)) == {
        **dict.fromkeys(("pinned copy", "a copy per image", "placement, not calibrated"), "number"),
        "calibration": "left out",
    }
    assert verdicts(copies.ring(SUBJECT)) == {"ring, 12 threads, 4 MiB": "number"}
    monkeypatch.setattr(copies.torch, "equal", lambda *arguments: False)
    assert verdicts(copies.ring(SUBJECT)) == {"ring, 12 threads, 4 MiB": "BAD"}


class FakeGpu(Subject):
    """The CPU at smoke sizes, of which the items believe that it is a GPU."""

    on_gpu = True

    def size(self, full: Any, smoke: Any) -> Any:
        return smoke

    def synchronize(self) -> None:
        pass


REFUSALS = {
    "call PlacementTable.warm_up or vitcache.warm_up before the capture": "ok",
    "operation not permitted when stream is capturing": "BAD",
    None: "BAD",
}


@pytest.mark.parametrize("message", REFUSALS, ids=["our error", "an error of CUDA", "no error"])
def test_capture_before_warm_up_is_ok_only_with_our_error(
    message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures: list[object] = []

    def capture(subject: Subject, body: Callable[[], object]) -> Callable[[], object]:
        captures.append(body)
        if len(captures) == 1 and message is not None:
            raise RuntimeError(message)
        return body

    monkeypatch.setattr(graphs, "capture", capture)
    assert verdicts(graphs.first_use(FakeGpu(SUBJECT.device))) == {
        "capture before warm_up": REFUSALS[message],
        "capture after warm_up": "ok",
    }


@pytest.mark.parametrize("refused", [True, False])
def test_update_during_a_replay_is_bad_unless_it_is_refused(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeping: list[int] = []
    update = PlacementTable.update

    def check(table: PlacementTable, *arguments: Any) -> PlacementTable:
        if sleeping and refused:
            sleeping.clear()
            raise RuntimeError("work that reads this table is in flight")
        return update(table, *arguments)

    monkeypatch.setattr(PlacementTable, "update", check)
    monkeypatch.setattr(graphs, "capture", lambda subject, body: body)
    monkeypatch.setattr(graphs.torch.cuda, "_sleep", sleeping.append)
    found = verdicts(graphs.update_during_replay(FakeGpu(SUBJECT.device)))
    assert found == {
        "update during a replay": "ok" if refused else "BAD",
        "replay after a refused update": "ok",
        "update after a replay": "ok",
    }


def test_calibration_is_timed_and_must_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([1 << 20, 1 << 20, 1, 2])
    ones = torch.ones
    monkeypatch.setattr(copies, "calibrate_cuda", lambda device: next(results))
    monkeypatch.setattr(
        copies.torch, "ones", lambda *shape, pin_memory=False, **options: ones(*shape, **options)
    )
    for verdict in ("ok", "BAD"):
        found = verdicts(copies.host_rows(FakeGpu(SUBJECT.device)))
        assert found["calibration"] == found["placement, calibrated"] == "number"
        assert found["calibration runs once"] == verdict


def test_kernel_that_is_loaded_for_an_offset_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcache.triton_kernels import embed_rows

    loaded: list[object] = []

    class Kernel:
        variants = loaded

    def embed(*arguments: object) -> None:
        loaded.append(arguments)

    monkeypatch.setattr(embed_rows, "embed_kernel", Kernel)
    monkeypatch.setattr(launches, "embed_tokens", embed)
    assert verdicts(launches.odd_ids(SUBJECT))["no kernel is loaded for an offset"] == "BAD"
