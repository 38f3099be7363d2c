from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feature_extraction.backbones import Backbone, build_backbone
from feature_extraction.errors import UsageError
from feature_extraction.images.preprocessing import WHOLE, Preprocessing, View
from feature_extraction.self_test import MOST, TOLERANCES, self_test
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.tower import FeatureMaps, Tower

SETTINGS = ExtractionSettings("my_towers:build", image_size=8, batch_size=4, workers=0)
SQUARE = Preprocessing(8, "bicubic", (0.5,) * 3, (0.25,) * 3)


class Normalised(nn.Module):
    """Batch normalisation that stays in training mode: a function, not a module, so that eval() cannot stop it."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.batch_norm(images, None, None, training=True)


class Noisy(nn.Module):
    """Dropout that stays in training mode."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(images, 0.1, training=True)


class Mixing(nn.Module):
    """Attention whose sequence is the batch, as after a forgotten batch_first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(192, 2)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)[:, None].to(self.attention.in_proj_weight.dtype)
        return images + self.attention(flat, flat, flat)[0].view_as(images)


class AtPlaces(nn.Module):
    """Adds something to every other image of a batch, and knows nothing of the images beside."""

    def forward(self, images: Tensor) -> Tensor:
        places = torch.arange(len(images), device=images.device) % 2
        return images + places.view(-1, 1, 1, 1)


class Broken(nn.Module):
    """Divides by the standard deviation of an image, which a grey one has not."""

    def forward(self, images: Tensor) -> Tensor:
        return images / (images - images).sum()


class Growing(nn.Module):
    """Gives as many tokens as there are images."""

    def forward(self, images: Tensor) -> Tensor:
        return images[..., : len(images)]


class OneOnly(nn.Module):
    """Knows no batches."""

    def forward(self, images: Tensor) -> Tensor:
        return images.squeeze(0).view(1, 3, 8, 8)


def backbone(network: nn.Module, transform: Any = SQUARE, **settings: Any) -> Backbone:
    tower = Tower(network, lambda images: FeatureMaps(network(images)), transform)
    return Backbone(tower=tower, settings=replace(SETTINGS, **settings), device=torch.device("cpu"))


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_a_good_backbone_passes(tiny_settings: ExtractionSettings, precision: str, resize: str) -> None:
    self_test(build_backbone(replace(tiny_settings, precision=precision, resize=resize, batch_size=5)))


def test_a_batch_of_one_image_passes(tiny_settings: ExtractionSettings) -> None:
    self_test(build_backbone(replace(tiny_settings, batch_size=1)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Growing(),
            r"my_towers:build fails the self-test of shape: a batch of 4 images gives features \(4, 32, 3\) .*",
        ),
        (OneOnly(), r"self-test of shape: a batch of 4 images stops with RuntimeError: .* Let it take batches of feat"),
        (Broken(), r"self-test of finite values: 768 of 768 features are NaN or too large .* features\.precision fp32"),
        (Noisy(), r"self-test of determinism: the same batch gives other features: the largest .* such as dropout"),
        (
            Normalised(),
            r"self-test of batch invariance: an image alone has other features than among .* \d.*statistics",
        ),
        (Mixing(), r"self-test of batch invariance: an image alone has other features than among others: the largest"),
        (
            AtPlaces(),
            r"self-test of batch invariance: an image has other features at another place in the batch: the l",
        ),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_backbone_that_breaks_a_promise_is_told_which(network: nn.Module, message: str, precision: str) -> None:
    with pytest.raises(UsageError, match=message):
        self_test(backbone(network, precision=precision))


def test_the_largest_difference_is_named() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return torch.ones_like(images) * 8 + (self.calls == 2) / 4  # the first batch; the probe comes before

    with pytest.raises(
        UsageError, match=r"the largest difference is 0\.25, the largest feature 8\.25, and 0 of it may"
    ):
        self_test(backbone(Once()))


def test_a_preprocessing_that_shows_nothing_of_an_image_fails() -> None:
    class Blind:
        def __init__(self, view: View) -> None:
            self.view = view

        def apply(self, image: np.ndarray) -> tuple[np.ndarray, View]:
            square, _ = SQUARE.apply(image)
            return square.transpose(2, 0, 1).astype(np.float32), self.view

        def identity(self) -> dict[str, Any]:
            return {}

    self_test(backbone(nn.Identity(), Blind(WHOLE)))
    with pytest.raises(UsageError, match=r"self-test of boxes: in 4 of 4 images no visual token has a box with an are"):
        self_test(backbone(nn.Identity(), Blind(View(1, 1, 2, 2))))


def test_it_takes_four_batches_at_most(tiny_settings: ExtractionSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    found = build_backbone(tiny_settings)
    count = 0
    encode: Callable[..., Any] = Backbone.encode_inputs

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return encode(*arguments)

    monkeypatch.setattr(Backbone, "encode_inputs", counted)
    self_test(found)
    assert count == 4


def test_a_backbone_s_own_failure_is_told_as_it_is() -> None:
    class Refusing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 1:
                raise UsageError("as it is")
            return images

    with pytest.raises(UsageError, match=r"^as it is$"):
        self_test(backbone(Refusing()))


@pytest.mark.parametrize(("compiled", "images"), [(False, {MOST}), (True, {3 * MOST})])
def test_a_trial_takes_small_batches_unless_the_network_is_compiled(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, images: set[int]
) -> None:
    """Since another size would be compiled anew."""
    monkeypatch.setattr("feature_extraction.towers.forward_pass._compiled", lambda feature_maps: feature_maps)
    seen: set[int] = set()

    class Watched(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            seen.add(len(batch))
            return batch

    watched = backbone(Watched(), batch_size=3 * MOST, compile=compiled)
    seen.clear()  # it was probed with a single image
    self_test(watched)
    assert seen == images
