"""The options of the lower tiers: errors at start-up, and the name under which later starts find rows."""

from __future__ import annotations

from types import SimpleNamespace as Namespace
from typing import Any

import pytest
import torch

from vitcache.adapters.vllm import tier_settings
from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.tier_settings import FETCH_BYTES, TierSettings, read_tiers
from vitcache.tiers.mooncake_tier import MooncakeTier

COMMIT = "0123456789abcdef" * 2 + "01234567"
DISK = {"host_bytes": "1GiB", "disk": "/data/rows", "disk_bytes": "100GiB"}
STORE = {"host_bytes": "1GiB", "mooncake": "10.0.0.7:50051"}
WITHOUT_DISK = {"disk": None, "disk_bytes": None}


def config(**changed: Any) -> Any:
    """A configuration that the tiers need, with some parts changed."""
    parts = {
        "parallel_config": Namespace(tensor_parallel_size=1, distributed_executor_backend="uni"),
        "cache_config": Namespace(enable_prefix_caching=True),
        "model_config": model(),
    }
    return Namespace(**{**parts, **changed})


def model(**changed: Any) -> Any:
    multimodal = Namespace(mm_processor_cache_gb=4, mm_processor_kwargs=None, mm_encoder_only=False)
    fields = {"model": "a/model", "revision": COMMIT, "multimodal_config": multimodal, "hf_overrides": {}}
    return Namespace(**{**fields, **changed})


def read(options: dict[str, Any] | None = None, **changed: Any) -> TierSettings:
    disk = read_tiers({**DISK, **(options or {})}, config(**changed))
    assert disk is not None
    return disk


def test_without_the_options_there_is_no_tier_and_no_check() -> None:
    assert read_tiers({"host_bytes": 0, "disk": None}, config(parallel_config=None)) is None


def test_disk_has_a_path_and_a_size() -> None:
    [disk] = read().make()
    assert (disk.name, disk.capacity_bytes) == ("disk", 100 << 30)


def test_store_is_a_tier_alone_and_below_a_disk() -> None:
    store = read({**WITHOUT_DISK, **STORE})
    both = read(STORE)
    assert [[tier.name for tier in settings.make()] for settings in (store, both)] == [
        ["mooncake"],
        ["disk", "mooncake"],
    ]
    assert (store.num_tiers, both.num_tiers) == (1, 2)
    assert (store.master, both.path) == ("10.0.0.7:50051", "/data/rows")


@pytest.mark.parametrize("worth", [None, 2, 0.25])
def test_store_has_the_worth_of_the_option(worth: float | None) -> None:
    [tier] = read({**WITHOUT_DISK, **STORE, "mooncake_worth": worth}).make()
    assert tier.worth == worth


def test_store_has_the_worth_of_its_class_without_the_option() -> None:
    [tier] = read({**WITHOUT_DISK, **STORE}).make()
    assert tier.worth == MooncakeTier(STORE["mooncake"]).worth


def test_settings_have_host_pages_for_fetches_beside_the_host_tier() -> None:
    def settings(host_bytes: int, tiers: TierSettings | None) -> Settings:
        return Settings(1 << 20, host_bytes, 16, 64, torch.float32, bytes(32), tiers=tiers)

    assert settings(1 << 20, None).fetch_pages == 0
    assert settings(1 << 20, read()).fetch_pages == settings(1 << 20, None).host_pages
    assert settings(1 << 30, read()).fetch_pages == FETCH_BYTES // (16 * 64 * 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"disk": None}, ValueError, r"\['disk'\] is missing: .*\['disk_bytes'\] needs it"),
        ({"disk_bytes": None}, ValueError, r"\['disk_bytes'\] is missing: .*\['disk'\] needs it"),
        (
            {**WITHOUT_DISK, "weights_name": "a"},
            ValueError,
            r"\['disk'\] or .*\['mooncake'\] is missing: .*\['weights_name'\] needs one of them",
        ),
        (
            {"mooncake_worth": 0.5},
            ValueError,
            r"\['mooncake'\] is missing: .*\['mooncake_worth'\] needs it",
        ),
        ({**WITHOUT_DISK, **STORE, "host_bytes": 0}, ValueError, r"\['mooncake'\] needs a host tier"),
        ({**WITHOUT_DISK, **STORE, "disk_bytes": 1}, ValueError, r"\['disk'\] is missing"),
        ({"mooncake": "10.0.0.7"}, ValueError, r"\['mooncake'\] is '10.0.0.7', it must be 'host:port'"),
        ({"mooncake": 50051}, TypeError, r"\['mooncake'\] must be a str"),
        (
            {**STORE, "mooncake_worth": 0},
            ValueError,
            r"\['mooncake_worth'\] is 0.0, .* above 0",
        ),
        ({**STORE, "mooncake_worth": "1"}, TypeError, r"\['mooncake_worth'\] must be a number"),
        ({"host_bytes": 0}, ValueError, r"\['host_bytes'\] is 0, .*\['disk'\] needs a host tier"),
        ({"disk": 3}, TypeError, r"\['disk'\] must be a str, got 3 of type int"),
        ({"disk": ""}, ValueError, r"\['disk'\] is empty"),
        ({"disk_bytes": 0}, ValueError, r"\['disk_bytes'\] is 0"),
        ({"disk_bytes": 1.5}, TypeError, r"\['disk_bytes'\] must be an int or a str"),
        ({"weights_name": ""}, ValueError, r"\['weights_name'\] is empty"),
        ({"weights_name": 3}, TypeError, r"\['weights_name'\] must be a str"),
    ],
)
def test_wrong_options_are_refused_and_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parallel_config": Namespace(tensor_parallel_size=2)}, "tensor_parallel_size is 2, it must be 1"),
        ({"parallel_config": Namespace(pipeline_parallel_size=3)}, "pipeline_parallel_size is 3, it must be"),
        ({"parallel_config": Namespace(data_parallel_size=4)}, "data_parallel_size is 4, it must be 1"),
        (
            {"parallel_config": Namespace(distributed_executor_backend="mp")},
            r"backend is 'mp', it must be 'uni' with .*\['disk'\].*VLLM_ENABLE_V1_MULTIPROCESSING=0",
        ),
        (
            {
                "cache_config": Namespace(enable_prefix_caching=False),
                "model_config": model(multimodal_config=Namespace(mm_processor_cache_gb=0)),
            },
            "mm_processor_cache_gb is 0 and enable_prefix_caching is False.*rows of other images",
        ),
    ],
)
def test_instances_that_cannot_have_a_tier_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**changed)
    with pytest.raises(ValueError, match=message.replace("disk", "mooncake")):
        read({**WITHOUT_DISK, **STORE}, **changed)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (DISK, "disk, disk_bytes, weights_name"),
        ({**WITHOUT_DISK, **STORE}, "mooncake, mooncake_worth, weights_name"),
        (STORE, "disk, disk_bytes, mooncake, mooncake_worth, weights_name"),
    ],
    ids=["disk", "store", "both"],
)
def test_message_about_ranks_names_the_options_to_remove(options: dict[str, Any], left: str) -> None:
    with pytest.raises(ValueError, match=f"remove the options {left}$"):
        read(options, parallel_config=Namespace(tensor_parallel_size=2))


@pytest.mark.parametrize("is_prefix_caching", [False, True])
def test_one_of_the_caches_that_name_items_by_their_contents_is_sufficient(is_prefix_caching: bool) -> None:
    multimodal = Namespace(mm_processor_cache_gb=0 if is_prefix_caching else 4)
    caches = Namespace(enable_prefix_caching=is_prefix_caching)
    read(cache_config=caches, model_config=model(multimodal_config=multimodal))


def test_full_commit_hash_names_the_weights() -> None:
    disk = read()
    assert disk.weights_name is not None
    assert f"the revision is {COMMIT}" in disk.line
    assert read().weights_name == disk.weights_name


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:39], COMMIT + "0", COMMIT.upper()])
def test_other_revisions_name_no_weights_and_the_line_says_how(revision: str | None) -> None:
    disk = read(STORE, model_config=model(revision=revision))
    assert disk.weights_name is None
    assert "disk /data/rows and mooncake 10.0.0.7:50051: the rows are not found after a restart" in disk.line
    assert "set weights_name" in disk.line


def test_directories_and_adapters_name_no_weights(tmp_path: Any) -> None:
    assert read(model_config=model(model=str(tmp_path))).weights_name is None
    lora = Namespace(enable_tower_connector_lora=True)
    assert read(lora_config=lora).weights_name is None
    assert read({"weights_name": "a"}, model_config=model(model=str(tmp_path))).weights_name is not None
    assert read({"weights_name": "a"}, lora_config=lora).weights_name is not None


def test_name_changes_with_each_part_that_changes_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    multimodal = Namespace(mm_processor_kwargs={"max_pixels": 100}, mm_processor_cache_gb=4)
    names = {
        read().weights_name,
        read({"weights_name": "a"}).weights_name,
        read(model_config=model(multimodal_config=multimodal)).weights_name,
        read(model_config=model(hf_overrides={"vision_config": {"depth": 3}})).weights_name,
        read(load_config=Namespace(load_format="dummy")).weights_name,
    }
    for package in ("vllm", "transformers"):
        monkeypatch.setattr(tier_settings, "installed_version", {package: "9.9"}.get)
        names.add(read().weights_name)
    assert len(names) == 7


def test_given_name_is_used_for_each_model_revision() -> None:
    """The keys contain the model and its revision."""
    first = read({"weights_name": "a"}, model_config=model(revision="main"))
    assert first.weights_name == read({"weights_name": "a"}).weights_name
    assert "weights_name is 'a'" in first.line
