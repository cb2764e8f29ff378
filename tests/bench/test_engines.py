"""The parts of the bench `engines` without vLLM: conversation, options, counted bytes and skipped wins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitcache.bench.claims import bench_engines
from vitcache.bench.claims.engine_chats import check
from vitcache.bench.claims.engine_wins import NEEDS_GPU, WINS, WinsCase, run_wins
from vitcache.bench.engines import variables
from vitcache.bench.engines.contenders import CONNECTOR, CPU_OFFLOAD, MOST_IMAGES, NAMES, STOCK, EngineOptions
from vitcache.bench.engines.conversation import image, rows_of, turns
from vitcache.bench.engines.start import EngineFailed
from vitcache.bench.engines.written_bytes import BufferWrites, TorchWrites
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU, GPU, cases_for
from vitcache.bench.harness.timing import Timer


def test_conversation_returns_to_its_first_images() -> None:
    assert turns(6) == [[0, 1], [2, 3], [4, 5], [0, 1], [1], [2, 0, 1]]
    assert max(map(len, turns(24))) == MOST_IMAGES
    assert image("tiny", 3).tobytes() == image("tiny", 3).tobytes()
    assert image("tiny", 0).tobytes() != image("tiny", 4).tobytes()
    assert [rows_of("tiny", number) for number in range(4)] == [48, 16, 48, 6]
    assert rows_of("8b", 0) == 880


@pytest.mark.parametrize("contender", NAMES)
def test_contenders_have_equal_options_but_for_their_connector(contender: str) -> None:
    arguments = EngineOptions(contender, cache_rows=64).arguments()
    transfer = arguments.pop("ec_transfer_config", None)
    manager = arguments.pop("ec_manager_config", None)
    assert arguments == EngineOptions(STOCK, cache_rows=64).arguments()
    assert (transfer is None) == (contender == STOCK)
    assert (manager is None) == (contender in (STOCK, CPU_OFFLOAD))
    if manager:
        extra = transfer["ec_connector_extra_config"]
        assert extra["device_bytes"] == 64 * 4 * 128 * 2  # three deepstack levels of bfloat16
        assert extra["host_bytes"] == 8 * extra["device_bytes"]
        assert extra.get("place_rows", True) == (contender != CONNECTOR)


def test_variables_of_a_child_keep_the_sync_check_and_drop_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_GPU_SYNC_CHECK", "error")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    found = variables.of_child(CPU, 1, tmp_path)
    assert found["VLLM_GPU_SYNC_CHECK"] == "error"
    assert "VLLM_LOGGING_LEVEL" not in found
    assert (found["VLLM_USE_V2_MODEL_RUNNER"], found["VLLM_TARGET_DEVICE"]) == ("0", "cpu")
    assert "VLLM_TARGET_DEVICE" not in variables.of_child(GPU, 2, tmp_path)


def test_engine_with_other_tokens_than_stock_gets_no_number() -> None:
    stock = [{"images": [0], "tokens": [1, 2]}]
    check("vitcache", stock, stock)
    with pytest.raises(RuntimeError, match=r"images \[0\] with \[1, 3\], stock with \[1, 2\]: it gets no"):
        check("vitcache", [{"images": [0], "tokens": [1, 3]}], stock)


def test_torch_writes_count_results_and_only_the_values_of_index_put() -> None:
    buffer, mask = torch.zeros(8, 4), torch.tensor([True] * 3 + [False] * 5)
    with TorchWrites([buffer]) as writes:
        rows = torch.cat([torch.ones(2, 4), torch.ones(1, 4)])  # 32 + 16 + 48 bytes
        assert not writes.writes_buffers
        buffer[:8][mask] = rows  # 48 bytes; the slice is a view
    assert writes.bytes == 32 + 16 + 48 + 48
    assert writes.writes_buffers


def test_buffer_writes_count_written_elements_and_restore_all_others() -> None:
    buffer = torch.arange(8.0).view(4, 2)
    writes = BufferWrites([buffer])
    buffer[1] = 7.0
    writes.restore()
    assert writes.bytes == 2 * 4
    assert buffer.tolist() == [[0, 1], [7, 7], [4, 5], [6, 7]]


def test_wins_without_a_gpu_are_skipped_with_a_line_each_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder("engines", tmp_path, torch.device(CPU))
    assert list(run_wins(WinsCase(NEEDS_GPU), recorder, Timer(torch.device(CPU), 1))) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"engines: win {win} is skipped, it needs a GPU: {WINS[win]}" for win in NEEDS_GPU]
    [row] = recorder.rows
    assert (row["metric"], row["value"]) == ("skipped_wins", len(NEEDS_GPU))


def test_cases_on_a_gpu_are_the_chat_of_the_large_model_and_all_wins() -> None:
    on_gpu = cases_for(bench_engines.CASES["full"], "full", GPU)
    assert "chat of 24 images, 8b model" in [case.name for case in on_gpu]
    found = [win for case in on_gpu if isinstance(case, WinsCase) for win in case.wins]
    assert sorted(found) == sorted(WINS)


def test_reason_of_a_failed_engine_is_its_last_line_with_an_error() -> None:
    assert EngineFailed("ended:\nValueError: bad\nINFO cleanup").reason == "ValueError: bad"
    assert EngineFailed("ran longer than 600 s").reason == "ran longer than 600 s"
