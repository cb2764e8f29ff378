"""`attach` and its errors, `Attachment.detach`, copies of an attached model, and attachments of one cache."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from caches import make_cache
from torch import Tensor, nn

pytest.importorskip("transformers")

from attached import (
    GEMMA,
    QWEN3,
    image_rows,
    stock_rows,
)
from tiny_models import FAMILIES, Call, one_at_a_time
from tiny_zoo import ZOO

from vitcache import Namespace
from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.transformers import attach

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize("name", FAMILIES)
def test_attach_default_cache_holds_32768_rows_of_the_model(name: str) -> None:
    family = FAMILIES[name]
    cache = attach(family.model(torch.bfloat16)).cache
    assert (cache.row_width, cache.dtype, cache.device.type) == (family.row_width, torch.bfloat16, "cpu")
    assert cache.stats().device_capacity_bytes == 32768 * family.row_width * 2


@pytest.mark.parametrize("placement", ["auto", "off"])
def test_attached_model_that_is_dropped_without_detach_is_freed(placement: str) -> None:
    model = QWEN3.model()
    attachment = attach(model, fingerprint_calls=2, placement=placement)
    image_rows(model, QWEN3.call(0))
    freed = weakref.ref(model), weakref.ref(attachment.cache)
    del model, attachment
    gc.collect()
    assert [each() for each in freed] == [None, None]


def test_attach_device_bytes_sets_the_default_cache_and_excludes_cache() -> None:
    assert attach(GEMMA.model(), device_bytes=1 << 20).cache.stats().device_capacity_bytes == 1 << 20
    with pytest.raises(ValueError, match="device_bytes is the budget of the default cache"):
        attach(GEMMA.model(), make_cache(width=GEMMA.row_width), device_bytes=1 << 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 64}, "must have rows of 96 torch.float32 .*, got rows of 64 torch.float32"),
        ({"dtype": torch.bfloat16}, "must have rows of 96 torch.float32 .*, got rows of 96 torch.bfloat16"),
    ],
)
def test_attach_cache_of_another_width_or_dtype_is_refused(options: Call, message: str) -> None:
    model = QWEN3.model()
    before = dict(vars(model.model))
    with pytest.raises(ValueError, match=message):
        attach(model, make_cache(**({"width": QWEN3.row_width} | options)))
    assert vars(model.model) == before


def test_attach_model_without_image_features_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no get_image_features"):
        attach(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="Qwen3VLTextModel has no get_image_features"):
        attach(QWEN3.model().model.language_model)


def test_attach_unknown_family_is_refused() -> None:
    class SomeModel(nn.Module):
        config = SimpleNamespace(model_type="some_vl")

        def get_image_features(self, pixel_values: Tensor) -> Tensor:
            return pixel_values

    with pytest.raises(
        TypeError, match=r"SomeModel \(model type 'some_vl'\) .* model types that can: qwen2_vl, .*gemma3"
    ):
        attach(SomeModel())


def make_plain(tower: nn.Module) -> None:
    """Make plain attributes of the parameters, as FullyShardedDataParallel(use_orig_params=False) does."""
    for module in tower.modules():
        for name, weight in list(module._parameters.items()):
            delattr(module, name)
            setattr(module, name, None if weight is None else weight.detach())


def test_attach_tower_without_parameters_is_refused() -> None:
    model = GEMMA.model()
    make_plain(model.model.vision_tower)
    with pytest.raises(TypeError, match=r"Gemma3.* cannot be attached: its vision_tower has no parameters"):
        attach(model)


def test_call_after_the_parameters_of_the_tower_were_removed_is_refused() -> None:
    model = GEMMA.model()
    prompt = GEMMA.prompt(model, 0)
    with attach(model):
        make_plain(model.model.vision_tower)
        with torch.no_grad(), pytest.raises(RuntimeError, match="no parameters any more: detach the model"):
            model(**prompt)


@pytest.mark.parametrize("namespace", [bytearray(b"m"), 3, True, Namespace])
def test_attach_namespace_of_a_wrong_type_is_refused(namespace: Any) -> None:
    match = f"namespace must be a str, bytes, a Namespace or None, got {type(namespace).__name__}"
    with pytest.raises(TypeError, match=match):
        attach(GEMMA.model(), namespace=namespace)


def test_attach_namespace_object_and_its_digest_share_entries_and_a_str_does_not() -> None:
    space = Namespace("m", tenant="a")
    names: list[Any] = [space, space.digest(), b"m", "m", space.digest().hex(), "", b""]
    model, cache = GEMMA.model(), make_cache(400, width=GEMMA.row_width)
    sizes = []
    for name in names:
        attachment = attach(model, cache, namespace=name)
        image_rows(model, GEMMA.call(0))
        sizes.append(len(cache))
        attachment.detach()
    images = sizes[0]
    assert sizes == [images, images, 2 * images, 3 * images, 4 * images, 5 * images, 6 * images]


@pytest.mark.parametrize(
    ("device_bytes", "error", "match"),
    [
        (True, TypeError, "device_bytes must be an int or a str such as '8GiB', got True of type bool"),
        (
            1e9,
            TypeError,
            "device_bytes must be an int or a str such as '8GiB', got 1000000000.0 of type float",
        ),
        ("1 gigabyte", ValueError, "device_bytes is '1 gigabyte', it must be a number and a unit"),
        ("7B", ValueError, "device_bytes is 7, it must be at least"),
    ],
)
def test_attach_device_bytes_that_is_not_a_size_is_refused(
    device_bytes: Any, error: type[Exception], match: str
) -> None:
    model = GEMMA.model()
    with pytest.raises(error, match=match):
        attach(model, device_bytes=device_bytes)
    assert attach(model, device_bytes="1 MiB").cache.stats().device_capacity_bytes == 1 << 20


def test_attach_twice_is_refused_until_detach() -> None:
    model = GEMMA.model()
    attachment = attach(model)
    for part in (model, model.model):
        with pytest.raises(RuntimeError, match=r"is attached already: call Attachment\.detach\(\) first"):
            attach(part)
    attachment.detach()
    attach(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_detach_restores_the_model(name: str) -> None:
    family = FAMILIES[name]
    model, call = family.model(), family.call(0)
    before, keys = dict(vars(model.base_model)), list(model.state_dict())
    attachment = attach(model)
    assert list(model.state_dict()) == keys
    image_rows(model, call)
    attachment.detach()
    attachment.detach()
    assert vars(model.base_model) == before
    image_rows(model, call)
    assert attachment.stats() == AttachStats(encoded=1)
    assert len(attachment.cache) == 1


def test_detach_restores_a_method_that_was_set_on_the_object() -> None:
    model = one_at_a_time(QWEN3, QWEN3.model())
    own_method = vars(model.model)["get_image_features"]
    attachment = attach(model)
    assert torch.equal(image_rows(model, QWEN3.call(0)), stock_rows(model, QWEN3.call(0)))
    attachment.detach()
    assert vars(model.model)["get_image_features"] is own_method


def test_detach_under_another_wrapper_is_refused() -> None:
    model = QWEN3.model()
    attachment = attach(model)
    ours = model.model.get_image_features
    model.model.get_image_features = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(RuntimeError, match="get_image_features was replaced after attach"):
        attachment.detach()
    assert "get_video_features" in vars(model.model)
    model.model.get_image_features = ours
    attachment.detach()
    assert not {"get_image_features", "get_video_features"} & set(vars(model.model))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copy_of_an_attached_model_is_not_attached(how: str) -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.25)
    assert torch.equal(image_rows(twin, call), stock_rows(twin, call))
    assert attachment.stats() == AttachStats()
    assert not torch.equal(image_rows(model, call), image_rows(twin, call))
    second = attach(twin)
    assert torch.equal(image_rows(twin, call), stock_rows(twin, call))
    assert (attachment.stats().encoded, second.stats().encoded) == (1, 1)


def test_state_dict_of_an_attached_model_is_that_of_the_stock_model() -> None:
    model = QWEN3.model()
    expected = pickle.dumps(model.state_dict())
    with attach(model):
        assert pickle.dumps(model.state_dict()) == expected


def test_attachment_as_a_context_manager_detaches_on_exit_and_says_so() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    with attach(model) as attachment:
        assert repr(attachment).endswith("0 encoded, 0 hits, no look-ups>")
        for _ in range(2):
            image_rows(model, call)
        assert repr(attachment).endswith("1 encoded, 1 hit, hit rate 0.50>")
        assert attachment.stats().hit_rate == 0.5
    assert not {"get_image_features", "get_video_features"} & set(vars(model.model))
    assert repr(attachment).endswith(", detached>")


def test_attach_two_models_share_a_cache_and_no_entries() -> None:
    cache, call = make_cache(width=QWEN3.row_width), QWEN3.call(0)
    models = [QWEN3.model(seed=seed) for seed in range(2)]
    attachments = [attach(model, cache) for model in models]
    for _ in range(2):
        for model in models:
            assert torch.equal(image_rows(model, call), stock_rows(model, call))
    assert [attachment.stats() for attachment in attachments] == [AttachStats(encoded=1, hits=1)] * 2
    assert len(cache) == 2


def test_attach_with_an_equal_namespace_shares_entries() -> None:
    cache = make_cache(width=QWEN3.row_width)
    first_model, model = QWEN3.model(), QWEN3.model()
    first = attach(first_model, cache, namespace="weights of seed 0")
    second = attach(model, cache, namespace="weights of seed 0")
    expected = stock_rows(model, QWEN3.call(0)), stock_rows(model, QWEN3.call(1))
    for attached in (first_model, model):
        assert torch.equal(image_rows(attached, QWEN3.call(0, 1)), torch.cat(expected))
    assert first.stats() == AttachStats(encoded=2)
    assert second.stats() == AttachStats(
        encoded=1, hits=1
    )  # its first item is always encoded: it shows the form of the output
    assert len(cache) == 2


def test_attach_with_another_config_or_namespace_shares_no_entries() -> None:
    cache = make_cache(width=QWEN3.row_width)
    for namespace, theta in (("a", 1e4), ("b", 1e4), ("a", 1e5)):
        model = QWEN3.model()
        model.config.text_config.rope_parameters["rope_theta"] = theta
        attachment = attach(model, cache, namespace=namespace)
        image_rows(model, QWEN3.call(0))
        image_rows(model, QWEN3.call(1))
        assert attachment.stats().encoded == 2
    assert len(cache) == 6


def test_shadow_every_finds_an_outdated_entry(caplog: pytest.LogCaptureFixture) -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model, shadow_every=2)
    first = image_rows(model, call)
    for _ in range(4):
        assert torch.equal(image_rows(model, call), first)
    assert attachment.stats() == AttachStats(encoded=1, hits=4, shadowed=2)
    assert caplog.records == []
    for parameter in model.model.visual.parameters():
        parameter.data.mul_(0.5)  # attach cannot notice this
    for _ in range(2):
        assert torch.equal(image_rows(model, call), first)
    stats = attachment.stats()
    assert (stats.encoded, stats.shadowed) == (1, 3)
    assert stats.shadow_difference > 0
    [record] = caplog.records
    assert (record.name, record.levelname) == ("vitcache.shadow", "WARNING")
    assert f"by up to {stats.shadow_difference:g}" in record.message


@pytest.mark.parametrize(("every", "error"), [(-1, ValueError), (1.5, TypeError), (None, TypeError)])
def test_attach_wrong_shadow_every_raises_with_its_name_and_value(every: Any, error: type[Exception]) -> None:
    model = QWEN3.model()
    with pytest.raises(error, match=f"shadow_every .* {every}"):
        attach(model, shadow_every=every)
    attach(model).detach()


def test_detach_after_the_methods_were_deleted_ends_the_attachment() -> None:
    model = QWEN3.model()
    attachment = attach(model)
    model.model.get_image_features = lambda *args: None
    with pytest.raises(RuntimeError, match="get_image_features was replaced after attach"):
        attachment.detach()
    del model.model.get_image_features
    attachment.detach()
    attach(model).detach()
    assert "get_video_features" not in vars(model.model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": 3}, "cache must be a EmbeddingCache or None, got int"),
        ({"ring": "256 MiB"}, "ring must be a PinnedRing or None, got str"),
    ],
)
def test_attach_cache_or_ring_of_a_wrong_type_is_refused(options: Call, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        attach(QWEN3.model(), **options)


def test_attach_model_without_an_audio_tower_leaves_its_audio_method_alone() -> None:
    zoo = ZOO["gemma4"]
    model = zoo.model()
    model.model.audio_tower = None
    attachment = attach(model)
    assert {"get_image_features", "get_video_features"} <= vars(model.model).keys()
    with torch.no_grad(), pytest.raises(ValueError, match="initialized without an audio_config"):
        model.model.get_audio_features(**zoo.media["audio"].make(0))
    attachment.detach()
