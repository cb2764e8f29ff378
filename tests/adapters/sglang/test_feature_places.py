"""Features in host memory whose copies are in flight, and features in the memory of another process."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang_fakes.model import Model, rows_of
from sglang_fakes.requests import DataItem, Inputs, Modality, feature, image
from sglang_fakes.scene import Scene, Window

from vitcache.adapters.sglang.feature_places import encoder_moves, wait_until_offloaded

SCHEDULE = "sglang.srt.managers.mm_schedule"
COPIED, BORROW = "_sglang_cuda_ipc_feature_copy_event", "_sglang_borrow_cuda_ipc_feature"


class Event:
    """As an event of CUDA. It counts its waits, and calls a function in the first one."""

    def __init__(self, on_wait: Any = None) -> None:
        self.num_waits = 0
        self.on_wait = on_wait

    def synchronize(self) -> None:
        self.num_waits += 1
        if self.on_wait is not None:
            self.on_wait()


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType(SCHEDULE)
    module.host_offload_event = None
    module.embedding_cache = None
    module._can_skip_pre_embed_feature_move = lambda embedder: embedder == "moves"
    monkeypatch.setitem(sys.modules, SCHEDULE, module)
    return module


ON_HOST = {"tensor": torch.zeros(2), "list": [np.zeros(2), torch.zeros(2)], "tuple": (torch.zeros(2),)}
ELSEWHERE = {
    "array": np.zeros(2),
    "meta": torch.zeros(2, device="meta"),
    "none": None,
    "empty": [],
    "object": object(),
}


@pytest.mark.parametrize("feature", ON_HOST.values(), ids=ON_HOST)
def test_features_in_host_memory_wait_for_their_copies(schedule: Any, feature: Any) -> None:
    schedule.host_offload_event, own = Event(), Event()
    wait_until_offloaded(DataItem(**{COPIED: own}), feature)
    assert (schedule.host_offload_event.num_waits, own.num_waits) == (1, 1)


@pytest.mark.parametrize("feature", ELSEWHERE.values(), ids=ELSEWHERE)
def test_features_outside_of_host_memory_do_not_wait(schedule: Any, feature: Any) -> None:
    schedule.host_offload_event = Event()
    wait_until_offloaded(DataItem(), feature)
    assert schedule.host_offload_event.num_waits == 0


def test_feature_without_copies_does_not_wait(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until_offloaded(DataItem(), torch.zeros(2))
    monkeypatch.delitem(sys.modules, SCHEDULE)
    wait_until_offloaded(DataItem(), torch.zeros(2))
    assert not encoder_moves("moves")


@pytest.mark.parametrize("is_on_host", [True, False])
def test_feature_of_sglangs_buffer_is_read_behind_its_copy(
    schedule: Any, monkeypatch: pytest.MonkeyPatch, is_on_host: bool
) -> None:
    """With SGLANG_MM_BUFFER_SIZE_MB, SGLang copies features to the host and records no event."""
    stream = Event()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    utils: Any = ModuleType("sglang.srt.managers.mm_utils")
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    utils._GPU_FEATURE_BUFFER = None
    read = torch.zeros(2) if is_on_host else torch.zeros(2, device="meta")
    wait_until_offloaded(DataItem(), read)
    assert stream.num_waits == 0
    utils._GPU_FEATURE_BUFFER = torch.zeros(8)
    wait_until_offloaded(DataItem(), read)
    assert stream.num_waits == int(is_on_host)


def test_encoder_that_moves_features_is_known_by_sglang(schedule: Any) -> None:
    assert encoder_moves("moves")
    assert not encoder_moves(None)


@pytest.mark.parametrize("is_precomputed", [False, True])
def test_step_reads_memory_after_its_copy(
    schedule: Any, monkeypatch: pytest.MonkeyPatch, is_precomputed: bool
) -> None:
    """The memory has NaN until SGLang's copy is complete."""
    item = image(1, (0, 2))
    if is_precomputed:
        item.precomputed_embeddings, item.feature = torch.ones(3, 4), None
    memory = item.precomputed_embeddings if is_precomputed else item.feature
    values = memory.clone()
    memory.fill_(float("nan"))
    schedule.host_offload_event = Event(lambda: memory.copy_(values))
    Scene(monkeypatch).step(Window(Inputs([item]), 0, 4))
    assert schedule.host_offload_event.num_waits > 0


def test_hit_does_not_wait_for_copies(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    inputs = Inputs([image(1, (0, 2))])
    scene.step(Window(inputs, 0, 4))
    schedule.host_offload_event = Event()
    scene.step(Window(inputs, 0, 4))
    assert schedule.host_offload_event.num_waits == 0


class Lent(DataItem):
    """An item whose feature is in the memory of another process. The encoder opens it."""

    def can_defer_cuda_ipc_feature_reconstruction(self) -> bool:
        return True


class Opening(Model):
    """A model that opens features. It records which ones it may read without a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.borrowed: list[bool] = []

    def get_image_feature(self, items: list[DataItem]) -> Any:
        self.borrowed += [bool(item.model_specific_data.get(BORROW)) for item in items]
        return self.encode([image(item.seed, *item.offsets) for item in items])


def lent(seed: int, *offsets: tuple[int, int]) -> Lent:
    return Lent(feature=object(), offsets=list(offsets), seed=seed)


@pytest.mark.parametrize(
    ("start", "length", "expected"), [(0, 8, True), (2, 3, True), (2, 2, False), (3, 5, False), (4, 9, False)]
)
def test_feature_is_lent_if_the_whole_item_is_in_the_step(
    monkeypatch: pytest.MonkeyPatch, start: int, length: int, expected: bool
) -> None:
    """The encoder reads the memory of another process, and later steps need a copy of the feature."""
    model = Opening()
    scene = Scene(monkeypatch, model)
    item, truth = lent(1, (2, 4)), image(1, (2, 4))
    ids = torch.zeros(length, dtype=torch.long)
    rows, _ = scene.embed(Window(Inputs([item]), start, length), ids=ids)
    wanted, _ = scene.truth((Window(Inputs([truth]), start, length),), (), (), 0, {})
    tokens = [token - start for token in range(2, 5) if start <= token < start + length]
    assert torch.equal(rows[tokens], wanted[tokens])
    assert model.borrowed == [expected]


@pytest.mark.parametrize("offsets", [None, [], 3, [3], ["ab"], [(None, 2)], [(4, 2)]], ids=repr)
def test_lent_item_with_bad_offsets_ends_no_step(monkeypatch: pytest.MonkeyPatch, offsets: Any) -> None:
    scene = Scene(monkeypatch, Opening())
    bad = lent(1)
    bad.offsets = offsets
    windows = Window(Inputs([bad, lent(2, (1, 2))]), 0, 5)
    for _ in range(2):
        rows, _ = scene.embed(windows, ids=torch.zeros(5, dtype=torch.long))
        assert torch.equal(rows[1:3], rows_of(Modality.IMAGE, feature(2, 2)))


class Opened(Lent):
    """As `Lent`, until this process has copied the feature."""

    def can_defer_cuda_ipc_feature_reconstruction(self) -> bool:
        return not isinstance(self.feature, torch.Tensor)

    def reconstruct(self, target_device: int | None) -> None:
        self.model_specific_data["_sglang_opened"] = self.model_specific_data.get("_sglang_opened", 0) + 1
        self.feature = feature(self.seed, sum(last - first + 1 for first, last in self.offsets))


@pytest.fixture
def num_ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the number of tensor parallel ranks of SGLang."""

    def set_number(number: int) -> None:
        name = "sglang.srt.runtime_context"
        module: Any = ModuleType(name)
        module.get_parallel = lambda: SimpleNamespace(
            tp_rank=0, tp_size=number, attn_tp_size=1, attn_cp_size=1
        )
        module.get_server_args = lambda: None
        module.get_mm = lambda: SimpleNamespace(mm_enable_dp_encoder=False)
        monkeypatch.setitem(sys.modules, name, module)

    return set_number


def encode_twice(scene: Scene, item: Any) -> list[Any]:
    """Two requests with images of one content. Returns the items of SGLang."""
    items = [item(seed=3, feature=object(), offsets=[(1, 2)]) for _ in range(2)]
    for each in items:
        rows, _ = scene.embed(Window(Inputs([each]), 0, 4), ids=torch.zeros(4, dtype=torch.long))
        assert torch.equal(rows[1:3], rows_of(Modality.IMAGE, feature(3, 2)))
    return items


@pytest.mark.parametrize(("ranks", "opened"), [(1, 1), (2, 0)])
def test_feature_of_another_process_is_opened_and_hashed_by_one_rank_alone(
    monkeypatch: pytest.MonkeyPatch, num_ranks: Any, ranks: int, opened: int
) -> None:
    """With several ranks, each feature is for the rank that encodes it."""
    num_ranks(ranks)
    model = Opening()
    scene = Scene(monkeypatch, model)
    items = encode_twice(scene, Opened)
    assert [item.model_specific_data.get("_sglang_opened", 0) for item in items] == [opened] * 2
    assert (model.num_encoded, scene.service.stats().unshared) == ((1, 0) if opened else (2, 2))


def test_feature_of_a_named_item_is_left_to_the_encoder(
    monkeypatch: pytest.MonkeyPatch, num_ranks: Any
) -> None:
    num_ranks(1)
    model = Opening()
    scene = Scene(monkeypatch, model, trust_engine_hash=True)

    class Named(Opened):
        def __init__(self, **values: Any) -> None:
            super().__init__(**values, hash=7)

    items = encode_twice(scene, Named)
    assert model.num_encoded == 1
    assert model.borrowed == [True]
    assert all("_sglang_opened" not in item.model_specific_data for item in items)
