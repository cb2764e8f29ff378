"""Models that no table names: their splits follow from signatures, are checked, or the model is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from some_vlm import HIDDEN, SIDE, SomeVlm, images
from tiny_zoo import ZOO, stock_each
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vitcache.adapters import attachable
from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


@torch.no_grad()
def rows(model: SomeVlm, *seeds: int) -> Tensor:
    return model(pixel_values=images(*seeds))


def test_attach_unnamed_model_splits_by_the_leading_dimension_and_caches_each_image() -> None:
    stock, model = SomeVlm(), SomeVlm()
    attachment = attach(model)
    for seeds, encoded in (((0,), 1), ((0, 1), 2), ((1, 0, 2), 3), ((2, 2), 3)):
        torch.testing.assert_close(rows(model, *seeds), rows(stock, *seeds))
        assert attachment.stats().encoded == encoded
    assert attachment.stats().bypassed == 0


NAMED = [
    *((name, modality) for name in ("qwen2_vl", "qwen3_vl", "glm4v") for modality in ("image", "video")),
    ("llava_onevision", "video"),
    ("internvl", "image"),
    ("gemma3", "image"),
]


@pytest.mark.parametrize(("name", "modality"), NAMED)
def test_attach_known_family_by_its_signature_gives_the_stock_logits(
    name: str, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachable, "FAMILIES", {})
    zoo = ZOO[name]
    stock, model = zoo.model(), zoo.model()
    use = stock_each(zoo, stock, modality)
    attachment = attach(model)
    for seeds, encoded in (((0,), 1), ((0, 1), 2), ((1, 0, 2), 3)):
        prompt = zoo.prompt(stock, modality, *seeds)
        use(*seeds)
        with torch.no_grad():
            assert torch.equal(model(**prompt).logits, stock(**prompt).logits)
        assert attachment.stats().encoded == encoded
    assert (attachment.stats().bypassed, attachment.cache.row_width) == (0, zoo.row_width)


class SummedVlm(SomeVlm):
    """Each image's rows depend on the other images of the call."""

    def get_image_features(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        rows = self.vision(pixel_values)
        return BaseModelOutputWithPooling(pooler_output=rows + rows.sum(0, keepdim=True))


class PaddedVlm(SomeVlm):
    """Returns a row more for each further image of the call."""

    def get_image_features(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        rows = self.vision(pixel_values)
        more = rows[:, :1].expand(-1, len(rows) - 1, -1)
        return BaseModelOutputWithPooling(pooler_output=tuple(torch.cat([rows, more], 1)))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (SummedVlm, "get_image_features of SummedVlm gives rows for item 0 of a call that differ by"),
        (PaddedVlm, "gives 5, 5 rows for the items of one call, but 4, 4 rows for each item alone"),
    ],
)
def test_first_call_with_several_items_that_the_split_does_not_fit_is_refused(
    cls: type[SomeVlm], message: str
) -> None:
    model = cls()
    attachment = attach(model)
    alone = rows(model, 0)
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            rows(model, 0, 1)
    assert len(attachment.cache) == 1  # of the call with one image, which was right
    assert torch.equal(rows(model, 0), alone)
    attachment.detach()
    assert rows(model, 0, 1).shape[-1] == HIDDEN


class TwoTensorVlm(SomeVlm):
    def get_image_features(self, pixel_values: Tensor, pixel_values_local: Tensor) -> Any:
        return super().get_image_features(pixel_values)


@dataclass
class OutputWithRouter(BaseModelOutputWithPooling):
    router_logits: Tensor | None = None


class RouterVlm(SomeVlm):
    def get_image_features(self, pixel_values: Tensor, **options: Any) -> tuple | OutputWithRouter:
        return OutputWithRouter(pooler_output=self.vision(pixel_values), router_logits=pixel_values)


class HiddenRouterVlm(RouterVlm):
    def get_image_features(self, pixel_values: Tensor, **options: Any) -> Any:
        return super().get_image_features(pixel_values)


class UncalledVlm(SomeVlm):
    def forward(self, **features: Any) -> Any:
        return self.vision(features["pixel_values"])


class LoggingVlm(SomeVlm):
    def forward(self, **features: Any) -> Any:
        return super().forward(**features)


def test_attach_model_that_calls_its_method_through_super_is_served() -> None:
    model = LoggingVlm()
    attachment = attach(model)
    rows(model, 0)
    rows(model, 0)
    assert attachment.stats() == AttachStats(encoded=1, hits=1)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (TwoTensorVlm, "the pixels of an item are in several arguments: pixel_values, pixel_values_local"),
        (RouterVlm, "its output OutputWithRouter has fields that are not known: router_logits"),
    ],
)
def test_attach_signature_that_is_not_understood_is_refused_with_the_reason(
    cls: type[SomeVlm], reason: str
) -> None:
    model = cls()
    with pytest.raises(
        TypeError, match=rf"{cls.__name__} \(model type 'some_vl'\) cannot be attached: .*{reason}"
    ):
        attach(model)
    assert "get_image_features" not in vars(model)


def test_attach_model_that_never_calls_its_method_is_refused() -> None:
    with pytest.raises(TypeError, match=r"UncalledVlm .* none of its methods calls its get_image_features"):
        attach(UncalledVlm())


def test_output_field_that_is_not_understood_is_refused_before_anything_is_cached() -> None:
    model = HiddenRouterVlm()
    attachment = attach(model)
    with pytest.raises(TypeError, match="HiddenRouterVlm returned fields that attach does not know: router"):
        rows(model, 0)
    assert attachment.stats().encoded == len(attachment.cache) == 0


class AttributeVlm(SomeVlm):
    """Its output has an attribute outside of the fields of its class."""

    def get_image_features(self, pixel_values: Tensor, **options: Any) -> Any:
        output = super().get_image_features(pixel_values)
        output.router_logits = pixel_values
        return output


class TensorVlm(SomeVlm):
    def get_image_features(self, pixel_values: Tensor, **options: Any) -> Any:
        return self.vision(pixel_values)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (AttributeVlm, "AttributeVlm returned fields that attach does not know: router_logits"),
        (
            TensorVlm,
            "TensorVlm returned a Tensor, expected an object with pooler_output or last_hidden_state",
        ),
    ],
)
def test_output_of_another_form_is_refused_before_anything_is_cached(
    cls: type[SomeVlm], message: str
) -> None:
    model = cls()
    attachment = attach(model)
    with torch.no_grad(), pytest.raises(TypeError, match=message):
        model.get_image_features(images(0))
    assert attachment.stats().encoded == len(attachment.cache) == 0


class AudioVlm(SomeVlm):
    """Encodes sounds to rows that are wider than the language model."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_tower = torch.nn.Linear(SIDE, HIDDEN + 4)
        self.eval()

    def get_audio_features(self, input_features: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=self.audio_tower(input_features))

    get_image_features = None

    def forward(self, **features: Any) -> Any:
        return self.get_audio_features(**features).pooler_output


@torch.no_grad()
def test_attach_unnamed_audio_model_takes_the_width_of_its_first_output() -> None:
    model = AudioVlm()
    attachment = attach(model)
    for _ in range(2):
        assert model(input_features=images(0, 1)).shape == (2, SIDE, HIDDEN + 4)
    assert (attachment.cache.row_width, attachment.stats().encoded) == (HIDDEN + 4, 2)


class TiledVlm(SomeVlm):
    """`tiles[i]` consecutive indices of the first dimension are one image."""

    def get_image_features(self, pixel_values: Tensor, tiles: Tensor) -> BaseModelOutputWithPooling:
        parts = self.vision(pixel_values).flatten(0, 1).split((tiles * SIDE).tolist())
        return BaseModelOutputWithPooling(pooler_output=parts)


def by_tiles(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    counts = arguments["tiles"]
    parts = arguments["pixel_values"].split(counts.tolist())
    return [{"pixel_values": part, "tiles": count[None]} for part, count in zip(parts, counts, strict=True)]


def by_tile(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"pixel_values": tile, "tiles": torch.tensor([1])} for tile in arguments["pixel_values"].split(1)]


@torch.no_grad()
def test_attach_split_of_the_caller_is_used_and_checked() -> None:
    stock, model = TiledVlm(), TiledVlm()
    attachment = attach(model, splits={"image": by_tiles})
    first, second = images(0, 1), images(2)
    for pixels, tiles in ((first, [2]), (torch.cat([first, second]), [2, 1]), (second, [1])):
        call = {"pixel_values": pixels, "tiles": torch.tensor(tiles)}
        torch.testing.assert_close(model(**call), stock(**call))
    assert attachment.stats() == AttachStats(encoded=2, hits=2)
    # The same pixels in other tiles are other images.
    assert [len(part) for part in model.get_image_features(first, torch.tensor([1, 1])).pooler_output] == [
        4,
        4,
    ]
    assert attachment.stats().encoded == 4


@torch.no_grad()
def test_split_of_the_caller_that_is_wrong_is_refused_and_caches_nothing() -> None:
    model = TiledVlm()
    attachment = attach(model, splits={"image": by_tile})
    with pytest.raises(TypeError, match="gives 8, 4 rows for the items of one call, but 4, 4, 4 rows"):
        model(pixel_values=images(0, 1, 2), tiles=torch.tensor([2, 1]))
    assert len(attachment.cache) == 0


@pytest.mark.parametrize(
    ("split", "error", "message"),
    [
        (lambda config, arguments: (17,), TypeError, "must return a list of dicts or None, got tuple"),
        (lambda config, arguments: [17], TypeError, "item 0 of a split must be a dict .* got int"),
        (lambda config, arguments: [{"tiles": 1}], TypeError, r"first value is a tensor, got {'tiles': int}"),
        (
            lambda config, arguments: [{"pixel_values": images(0)}, {"tiles": images(0)}],
            ValueError,
            "item 1 of a split must have the arguments",
        ),
    ],
)
def test_split_of_the_caller_that_returns_no_items_is_refused(
    split: Any, error: type[Exception], message: str
) -> None:
    model = TiledVlm()
    attach(model, splits={"image": split})
    with torch.no_grad(), pytest.raises(error, match=message):
        model(pixel_values=images(0, 1), tiles=torch.tensor([2]))


@pytest.mark.parametrize(
    ("splits", "error", "message"),
    [
        ([by_tiles], TypeError, "splits must be a mapping of modalities to functions, got list"),
        ({"image": "grid"}, TypeError, r"splits\['image'\] must be a function, got str"),
        ({"video": by_tiles}, ValueError, "splits has 'video', but TiledVlm .* encodes image"),
        ({"picture": by_tiles}, ValueError, "splits has 'picture', but TiledVlm .* encodes image"),
    ],
)
def test_attach_splits_of_a_wrong_type_or_modality_are_refused(
    splits: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attach(TiledVlm(), splits=splits)


class ScaledVlm(SomeVlm):
    def get_image_features(self, pixel_values: Tensor, scales: Any) -> BaseModelOutputWithPooling:
        rows = self.vision(pixel_values) * torch.tensor(scales)[:, None, None]
        return BaseModelOutputWithPooling(pooler_output=rows)


def test_list_with_one_value_per_item_is_refused_by_the_signature() -> None:
    model = ScaledVlm()
    attachment = attach(model)
    for seeds, scales in (((0,), [2.0]), ((0, 1), [1.0, 2.0])):
        with torch.no_grad(), pytest.raises(TypeError, match="scales is a list with one value for each of"):
            model(pixel_values=images(*seeds), scales=scales)
    assert len(attachment.cache) == 0


def test_tensor_without_one_index_per_item_is_refused_by_the_signature() -> None:
    model = TiledVlm()
    attach(model)
    with torch.no_grad(), pytest.raises(TypeError, match="tiles must have one index for each of the 3 items"):
        model(pixel_values=images(0, 1, 2), tiles=torch.tensor([2, 1]))
