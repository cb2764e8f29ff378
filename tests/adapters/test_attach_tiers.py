"""`attach` and `vision_pipeline` over tiers: rows outlive the process, under a name of their weights."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import make_cache
from tiers.planted_tier import PlantedTier

pytest.importorskip("transformers")

from attached import Tower, logits, plain_kernels  # noqa: F401
from tiny_models import FAMILIES, TinyFamily, one_at_a_time

from vitcache import EmbeddingCache, Namespace, WriteBack, attach
from vitcache.adapters.transformers import Attachment, vision_pipeline
from vitcache.adapters.vision_tower import row_width
from vitcache.tiers import MemoryTier

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

SECONDS = 60
FAMILY = FAMILIES["qwen3_vl"]


def open_cache(model: Any, tier: Any, **options: Any) -> EmbeddingCache:
    """A cache over a tier that stores each entry when it is inserted."""
    options = {"weights_name": "tests", "write_back": WriteBack(hits=0), "fetch_timeout_s": SECONDS} | options
    dtype = next(model.parameters()).dtype
    return make_cache(512, 512, width=row_width(model.config), dtype=dtype, tiers=[tier], **options)


def run(model: Any, attachment: Attachment, prompt: Any) -> tuple[torch.Tensor, int]:
    """The logits of a prompt, and the number of encodes."""
    before = attachment.stats().encoded
    result = logits(model, prompt)
    return result, attachment.stats().encoded - before


def serve(family: TinyFamily, tier: Any, model: Any = None, **options: Any) -> tuple[list[Any], list[int]]:
    """Three turns of a chat in a process of its own: the logits, and the encodes of each turn."""
    model = family.model() if model is None else model
    results, encodes = [], []
    with open_cache(model, tier) as cache, attach(model, cache, **options) as attachment:
        for turn in (1, 2, 3):
            result, encoded = run(model, attachment, family.prompt(model, *range(turn)))
            results.append(result)
            encodes.append(encoded)
        assert cache.flush(SECONDS)
    return results, encodes


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_attach_after_a_restart_encodes_only_the_first_item(family: TinyFamily) -> None:
    stock = one_at_a_time(family, family.model())
    expected = [logits(stock, family.prompt(stock, *range(turn))) for turn in (1, 2, 3)]
    tier = MemoryTier(1 << 20)
    first, second = serve(family, tier), serve(family, tier)
    assert first[1] == [1, 1, 1]
    for results, _ in (first, second):
        assert all(map(torch.equal, results, expected))
    # The first item shows the form of the output, and in most models the number of rows of other items.
    if family is FAMILIES["llava_onevision"]:
        assert sum(second[1]) <= 3
    else:
        assert second[1] == [1, 0, 0]


def one_bit(model: Any) -> None:
    next(model.model.visual.parameters()).data.view(torch.int32)[0] ^= 1


def eps(model: Any) -> None:
    model.model.visual.blocks[0].norm1.eps = 0.5


CHANGES: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "one bit": (one_bit, {}),
    "a setting": (eps, {}),
    "dtype": (lambda model: model.bfloat16(), {}),
    "namespace": (lambda model: None, {"namespace": "mine"}),
    "tenant": (lambda model: None, {"namespace": Namespace("mine", tenant="b")}),
}


@pytest.mark.parametrize(("change", "options"), CHANGES.values(), ids=CHANGES)
def test_attach_finds_nothing_of_other_weights(change: Any, options: dict[str, Any]) -> None:
    tier = MemoryTier(1 << 20)
    serve(FAMILY, tier)
    model = FAMILY.model()
    change(model)
    assert serve(FAMILY, tier, model, **options)[1] == [1, 1, 1]


def test_attach_finds_nothing_of_another_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = MemoryTier(1 << 20)
    serve(FAMILY, tier)
    monkeypatch.setattr("vitcache.adapters.vision_tower._device_kind", lambda device: "another GPU")
    assert serve(FAMILY, tier)[1] == [1, 1, 1]


@pytest.mark.parametrize("namespace", ["mine", b"mine", Namespace("mine", tenant="a")])
def test_attach_with_a_namespace_reads_no_weights_and_finds_its_rows(
    namespace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcache.adapters.vision_tower.model_digest", None)
    tier = MemoryTier(1 << 20)
    serve(FAMILY, tier, namespace=namespace)
    assert serve(FAMILY, tier, namespace=namespace)[1] == [1, 0, 0]


def test_rows_of_attach_have_the_tenant_of_its_namespace() -> None:
    tier, model = MemoryTier(1 << 20), FAMILY.model()
    for tenant in ("a", "b"):
        with open_cache(model, tier) as cache, attach(model, cache, namespace=Namespace("m", tenant=tenant)):
            logits(model, FAMILY.prompt(model, 0, 1))
            assert cache.flush(SECONDS)
    with open_cache(model, tier) as cache:
        assert cache.forget_tenant("a") == 2
        assert cache.forget_tenant("") == 0
        assert cache.forget_tenant("b") == 2


def test_attach_with_tiers_makes_a_host_tier_and_names_the_weights() -> None:
    tier, encodes = MemoryTier(1 << 20), []
    for _ in range(2):
        model = FAMILY.model()
        attachment = attach(model, device_bytes="64KiB", tiers=[tier])
        cache = attachment.cache
        assert cache.host_pages == cache.device_pages
        encoded = [run(model, attachment, FAMILY.prompt(model, 0, 1))[1] for _ in range(4)]
        encodes.append(encoded)
        assert cache.flush(SECONDS)
        cache.close()
    assert encodes == [[2, 0, 0, 0], [1, 0, 0, 0]]
    model = FAMILY.model()
    made = attach(model, device_bytes="64KiB", host_bytes="128KiB", tiers=[tier]).cache
    assert made.host_pages > made.device_pages
    made.close()


def test_attach_moves_its_tiers_to_the_cache_that_the_first_output_decides() -> None:
    family = FAMILIES["qwen2_5_vl"]
    tier, encodes, caches = PlantedTier(), [], []
    for _ in range(2):
        model = family.model(torch.bfloat16)
        merger = model.model.visual.merger.float()
        merger.forward = lambda hidden, stock=merger.forward: stock(hidden.float())
        attachment = attach(model, device_bytes="64KiB", tiers=[tier], namespace="mixed")
        caches.append(attachment.cache)
        encodes.append([run(model, attachment, family.prompt(model, 0, 1))[1] for _ in range(4)])
        caches.append(attachment.cache)
        assert attachment.cache.flush(SECONDS)
        attachment.cache.close()
        attachment.detach()
    assert [cache.dtype for cache in caches] == [torch.bfloat16, torch.float32] * 2
    assert encodes == [[2, 0, 0, 0], [1, 0, 0, 0]]


def test_attach_refuses_tiers_beside_a_cache_and_weights_that_it_cannot_name() -> None:
    model, tier = FAMILY.model(), MemoryTier(1 << 20)
    with (
        open_cache(model, tier) as cache,
        pytest.raises(ValueError, match="tiers is an option of the default cache: give cache or tiers"),
    ):
        attach(model, cache, tiers=[MemoryTier(1 << 20)])
    with pytest.raises(TypeError, match="tiers must be a list of tiers, got int"):
        attach(model, tiers=3)  # type: ignore[arg-type]
    model.model.visual.to("meta")
    with pytest.raises(ValueError, match="is offloaded, or has no bytes: give a namespace"):
        attach(model, tiers=[tier])


def double(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2


FIRST_CHANGES: dict[str, Callable[[Any], object]] = {
    "a hook is registered": lambda block: block.register_forward_hook(double),
    "a new setting": lambda block: setattr(block, "factor", 2.0),
    "the hook is removed": lambda block: block._forward_hooks.clear(),
}


@pytest.mark.parametrize("change", FIRST_CHANGES.values(), ids=FIRST_CHANGES)
def test_rows_of_a_model_that_changes_before_the_first_call_have_another_name(change: Any) -> None:
    def start() -> Any:
        model = FAMILY.model()
        if change is FIRST_CHANGES["the hook is removed"]:
            model.model.visual.blocks[0].register_forward_hook(double)
        return model

    tier, first = MemoryTier(1 << 20), start()
    with open_cache(first, tier) as cache, attach(first, cache) as attachment:
        change(first.model.visual.blocks[0])
        assert run(first, attachment, FAMILY.prompt(first, 0, 1))[1] == 2
        assert cache.flush(SECONDS)
    stock = one_at_a_time(FAMILY, start())
    expected = [logits(stock, FAMILY.prompt(stock, *range(turn))) for turn in (1, 2, 3)]
    results, encodes = serve(FAMILY, tier, start())
    assert encodes == [1, 1, 1]
    assert all(map(torch.equal, results, expected))


def test_rows_of_changed_weights_are_stored_under_no_name_of_the_earlier_ones() -> None:
    tier, model = MemoryTier(1 << 20), FAMILY.model()
    prompt = FAMILY.prompt(model, 0, 1)
    with open_cache(model, tier) as cache, attach(model, cache) as attachment:
        with torch.no_grad():
            model.model.visual.blocks[0].mlp.linear_fc1.weight.mul_(2)
        assert run(model, attachment, prompt)[1] == 2
        assert run(model, attachment, prompt)[1] == 0
        assert cache.flush(SECONDS)
        assert cache.stats().tiers[0].stored == 2
    # With the earlier weights, and with the changed ones, which have a name of their own.
    assert serve(FAMILY, tier)[1] == [1, 1, 1]
    assert serve(FAMILY, tier, model)[1] == [1, 1, 1]


def test_rows_that_an_encode_began_before_a_write_are_not_stored() -> None:
    tier, model = MemoryTier(1 << 20), FAMILY.model()
    weight = model.model.visual.blocks[0].mlp.linear_fc1.weight

    def write(*_: Any) -> None:
        with torch.no_grad():
            weight.mul_(2)  # as another thread may do it during the encode

    with open_cache(model, tier) as cache, attach(model, cache):
        block = model.model.visual.blocks[1]
        stock = type(block).forward

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            write()
            return stock(self, *args, **kwargs)

        type(block).forward = forward  # the class: no part of the model that is watched changes
        try:
            logits(model, FAMILY.prompt(model, 0))
        finally:
            type(block).forward = stock
        assert cache.flush(SECONDS)
        assert cache.stats().tiers[0].stored == 0


def test_invalidate_revokes_the_rows_that_were_stored_since_a_hidden_write() -> None:
    tier, model = MemoryTier(1 << 20), FAMILY.model()
    prompt = FAMILY.prompt(model, 0, 1)
    attachment = attach(model, device_bytes="64KiB", tiers=[tier])
    model.model.visual.blocks[0].mlp.linear_fc1.weight.data.mul_(2)
    for _ in range(3):
        run(model, attachment, prompt)
    cache = attachment.cache
    assert cache.flush(SECONDS)
    assert (
        cache.stats().tiers[0].stored == 2
    )  # rows of the changed weights, under the name of the earlier ones
    attachment.invalidate()
    cache.close()
    model = FAMILY.model()
    attachment = attach(model, device_bytes="64KiB", tiers=[tier])
    assert run(model, attachment, prompt)[1] == 2
    attachment.cache.close()


def test_two_attachments_of_equal_weights_share_a_cache_and_its_tiers() -> None:
    tier, models = PlantedTier(), [FAMILY.model(), FAMILY.model()]
    prompt = FAMILY.prompt(models[0], 0, 1)
    serve(FAMILY, tier)
    with open_cache(models[0], tier) as cache:
        one, two = (attach(model, cache) for model in models)
        assert run(models[0], one, prompt)[1] == 1
        assert run(models[1], two, prompt)[1] == 1  # its first output
        assert run(models[1], two, FAMILY.prompt(models[1], 2, 1, 0))[1] == 0
        one.invalidate()
        assert run(models[0], one, prompt)[1] == 2
        assert run(models[1], two, prompt)[1] == 0


def test_attach_encodes_what_is_late_and_finds_it_later() -> None:
    tier, model = PlantedTier(), FAMILY.model()
    expected = serve(FAMILY, tier)[0][-1]
    prompt = FAMILY.prompt(model, 0, 1, 2)
    pause = tier.pause("fetch")
    with open_cache(model, tier, fetch_timeout_s=0.001) as cache, attach(model, cache) as attachment:
        result, encoded = run(model, attachment, prompt)
        assert (torch.equal(result, expected), encoded) == (True, 3)
        assert cache.stats().tiers[0].late > 0
        pause.release()
        assert cache.flush(SECONDS)
        assert run(model, attachment, prompt)[1] == 0


@pytest.mark.parametrize("method", ["open", "exists", "fetch", "store", "claim"])
def test_attach_over_a_failing_tier_returns_the_same_logits(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    tier, model = PlantedTier(), FAMILY.model()
    expected = serve(FAMILY, tier)[0]
    tier.fail(method, OSError("planted"))
    with caplog.at_level(logging.CRITICAL):
        results, encodes = serve(FAMILY, tier, model)
    assert all(map(torch.equal, results, expected))
    assert encodes[0] == 1


def test_a_hit_of_attach_calls_no_tier() -> None:
    tier, model = PlantedTier(), FAMILY.model()
    with (
        open_cache(model, tier, write_back=WriteBack(hits=100)) as cache,
        attach(model, cache) as attachment,
    ):
        prompt = FAMILY.prompt(model, 0, 1)
        run(model, attachment, prompt)
        assert cache.flush(SECONDS)
        del tier.calls["metrics"]  # of which statistics keep a copy
        calls = tier.calls.copy()
        assert [run(model, attachment, prompt)[1] for _ in range(3)] == [0, 0, 0]
        assert cache.flush(SECONDS)
        del tier.calls["metrics"]
        assert tier.calls == calls


def test_attach_switches_adapters_and_finds_the_rows_of_each_after_a_restart() -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        torch.manual_seed(3)
        config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
        model = peft.get_peft_model(FAMILY.model(), config, adapter_name="a")
        torch.manual_seed(4)
        model.add_adapter("b", config)
        return model.eval()

    tier, prompt = MemoryTier(1 << 20), FAMILY.prompt(FAMILY.model(), 0, 1)
    found = []
    for order in ("ab", "ba"):
        model = adapted()
        model.set_adapter(order[0])
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with open_cache(model.base_model.model, tier) as cache, attach(model, cache) as attachment:
            for name in order:
                model.set_adapter(name)
                for parameter in model.parameters():
                    parameter.requires_grad_(False)
                found.append(run(model, attachment, prompt)[1])
            assert cache.flush(SECONDS)
    assert found == [2, 2, 1, 1]


def test_vision_pipeline_over_tiers_finds_its_rows_after_a_restart() -> None:
    from vitcache import Chunk
    from vitcache.adapters.transformers import image_items

    tier = MemoryTier(1 << 20)
    results, found = [], []
    for _ in range(2):
        model = FAMILY.model()
        prompt = FAMILY.prompt(model, 0, 1)
        ids = prompt["input_ids"][0]
        with vision_pipeline(model, device_bytes="64KiB", tiers=[tier], max_rows_per_encode=1) as pipeline:
            tower = Tower(FAMILY, model)
            assert pipeline.cache.host_pages == pipeline.cache.device_pages
            items = image_items(model, ids, prompt["pixel_values"], prompt["image_grid_thw"])
            chunk = [Chunk(items, 0, len(ids))]
            # Without a deadline of its own the test would depend on the machine.
            pipeline.cache.fetch(
                [pipeline.key(item) for item in items], [i.num_rows for i in items], timeout_s=SECONDS
            )
            weight = model.get_input_embeddings().weight
            deepstack = torch.zeros(2, len(ids), weight.shape[1])
            for _ in range(3):
                with torch.no_grad():
                    results.append(pipeline.embed(chunk, ids, weight, deepstack=deepstack).inputs_embeds)
            found.append(tower.take())
            assert pipeline.cache.flush(SECONDS)
            pipeline.cache.close()
    assert found == [2, 0]
    assert all(torch.equal(result, results[0]) for result in results)


RESTART = """
import sys
sys.path.insert(0, {support!r})
import torch
from attached import logits
from tiny_models import FAMILIES
from vitcache import DiskTier, EmbeddingCache, attach
EmbeddingCache.__init__.__kwdefaults__["fetch_timeout_s"] = 60.0  # the machine may be busy
torch.backends.mkldnn.enabled = False
family = FAMILIES["qwen3_vl"]
model = family.model()
attachment = attach(model, device_bytes="64KiB", tiers=[DiskTier({folder!r}, "1MiB")])
for _ in range(3):
    result = logits(model, family.prompt(model, 0, 1))
assert attachment.cache.flush(60)
print(attachment.stats().encoded, result.double().sum().item().hex())
attachment.cache.close()
"""


def test_a_new_process_finds_the_rows_on_the_disk(tmp_path: Path) -> None:
    support = str(Path(__file__).parents[1] / "support")
    code = RESTART.format(support=support, folder=str(tmp_path / "disk"))
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    assert [int(encoded) for encoded, _ in found] == [2, 1]
    assert found[0][1] == found[1][1]


def test_attach_measures_its_encodes_only_for_a_tier_with_a_worth() -> None:
    for worth in (None, 0.5):
        tier, model = PlantedTier(), FAMILY.model()
        tier.worth = worth
        with open_cache(model, tier) as cache, attach(model, cache) as attachment:
            run(model, attachment, FAMILY.prompt(model, 0, 1, 2))
            widths = [] if worth is None else [cache.row_width]
            assert list(cache.stats().encode_ms_per_row) == widths
