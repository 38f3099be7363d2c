from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from feature_extraction.backbones import build_backbone
from feature_extraction.errors import IncompatibleError, InputDataError, UsageError
from feature_extraction.settings import ExtractionSettings

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION: dict[str, Any] = {**TINY, "image_size": 32, "patch_size": 8}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
SWIN: dict[str, Any] = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1]}


def clip() -> CLIPModel:
    return CLIPModel(CLIPConfig(text_config={**TINY, "vocab_size": 50_000}, vision_config=VISION))


# What is saved, by whose processor it goes, and what it gives of 32 pixels: tokens, width, whether a class token.
KINDS: dict[str, tuple[Callable[[], Any], Callable[[], Any], int, int, bool]] = {
    "clip": (clip, CLIPImageProcessorPil, 16, 16, True),
    "clip_vision": (lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)), CLIPImageProcessorPil, 16, 16, True),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)), SiglipImageProcessorPil, 16, 16, False),
    "siglip2": (
        lambda: Siglip2VisionModel(Siglip2VisionConfig(**TINY, patch_size=8, num_patches=16)),
        Siglip2ImageProcessorPil,
        16,
        16,
        False,
    ),
    # Saved without the pooling head that the bare model would have.
    "vit": (lambda: ViTForImageClassification(ViTConfig(**VISION)), ViTImageProcessorPil, 16, 16, True),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**VISION)), ViTImageProcessorPil, 16, 16, True),
    "registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION, num_register_tokens=2)),
        ViTImageProcessorPil,
        16,
        16,
        True,
    ),
    "dinov3": (
        lambda: DINOv3ViTModel(DINOv3ViTConfig(**VISION, num_register_tokens=2)),
        ViTImageProcessorPil,
        16,
        16,
        True,
    ),
    "dinov3_convnext": (
        lambda: DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1])),
        ConvNextImageProcessorPil,
        1,
        8,
        True,
    ),
    "convnext": (
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1])),
        ConvNextImageProcessorPil,
        1,
        8,
        False,
    ),
    "swin": (lambda: SwinModel(SwinConfig(**SWIN, window_size=4)), ViTImageProcessorPil, 16, 16, False),
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, layer_type="basic", **STAGES)),
        ConvNextImageProcessorPil,
        16,
        16,
        False,
    ),
}


def saved(folder: Path, kind: str) -> str:
    torch.manual_seed(4)
    model, processor, *_ = KINDS[kind]
    model().save_pretrained(folder / kind)
    processor().save_pretrained(folder / kind)
    return f"hf/{folder / kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_models_give_their_patches_and_their_class_token(tmp_path: Path, pictures: Any, kind: str) -> None:
    _, _, tokens, width, has_class_token = KINDS[kind]
    name = saved(tmp_path, kind)
    plain = build_backbone(ExtractionSettings(name, image_size=32, batch_size=2))
    assert (plain.visual_tokens, plain.feature_width) == (tokens, width)
    assert np.isfinite(plain.encode(pictures)["features"]).all()
    assert plain.identity()["backbone"] == f"hf/{kind}"  # the folder may move
    with_class = ExtractionSettings(name, image_size=32, batch_size=2, class_token=True)
    if not has_class_token:
        with pytest.raises(UsageError, match=rf"class_token is true, but {name} has no class token\. Set it to false"):
            build_backbone(with_class)
        return
    found = build_backbone(with_class).encode(pictures)
    assert found["features"].shape == (5, tokens + 1, width)
    assert np.array_equal(found["features"][:, 1:], plain.encode(pictures)["features"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_a_hidden_state(tmp_path: Path, pictures: Any, kind: str) -> None:
    backbone = build_backbone(ExtractionSettings(saved(tmp_path, kind), image_size=32, layer=1, batch_size=2))
    assert np.isfinite(backbone.encode(pictures)["features"]).all()


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("class_token", [False, True])
def test_clip_features_are_those_of_the_vision_model_itself(
    tmp_path: Path, pictures: Any, shown: Callable[..., torch.Tensor], layer: int | None, class_token: bool
) -> None:
    settings = ExtractionSettings(saved(tmp_path, "clip"), image_size=32, layer=layer, class_token=class_token)
    vision = CLIPModel.from_pretrained(tmp_path / "clip").vision_model.eval()
    processor = CLIPImageProcessorPil()
    with torch.inference_mode():
        output = vision(shown(pictures[0], 32, processor.image_mean, processor.image_std), output_hidden_states=True)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    expected = states[0, 0 if class_token else 1 :].numpy()
    found = build_backbone(settings).encode(pictures[:1])["features"][0]
    assert np.allclose(found, expected, atol=4e-3, rtol=4e-3)


def test_siglip_2_for_images_of_any_shape_gets_the_patches_of_its_own_processor(tmp_path: Path, pictures: Any) -> None:
    name = saved(tmp_path, "siglip2")
    square = np.ascontiguousarray(np.resize(pictures[0], (32, 32, 3)))
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    network = Siglip2VisionModel.from_pretrained(tmp_path / "siglip2").eval()
    with torch.inference_mode():
        expected = network(**processor(square, return_tensors="pt")).last_hidden_state[0].numpy()
    found = build_backbone(ExtractionSettings(name, image_size=32, batch_size=1)).encode([square])["features"][0]
    assert np.allclose(found, expected, atol=4e-3, rtol=4e-3)


def test_register_tokens_are_neither_patches_nor_class_tokens(
    tmp_path: Path, pictures: Any, shown: Callable[..., torch.Tensor]
) -> None:
    name = saved(tmp_path, "registers")
    network = Dinov2WithRegistersModel.from_pretrained(tmp_path / "registers").eval()
    processor = ViTImageProcessorPil()
    image = shown(pictures[0], 32, processor.image_mean, processor.image_std)
    with torch.inference_mode():
        tokens = network(image).last_hidden_state[0]
    assert len(tokens) == 1 + 2 + 16
    settings = ExtractionSettings(name, image_size=32, batch_size=1, class_token=True)
    found = build_backbone(settings).encode(pictures[:1])["features"][0]
    # The processor's filter is bilinear and the picture was shown bicubic: near, and no other token is as near.
    nearest = torch.cdist(torch.from_numpy(found).float(), tokens).argmin(dim=1)
    assert nearest.tolist() == [0, *range(3, 19)]


def test_another_image_size_gives_another_grid(tmp_path: Path) -> None:
    name = saved(tmp_path, "clip_vision")
    assert build_backbone(ExtractionSettings(name, image_size=48, batch_size=1)).visual_tokens == 36


def test_half_of_clip_is_the_same_backbone_as_its_vision_model(tmp_path: Path) -> None:
    whole = build_backbone(ExtractionSettings(saved(tmp_path, "clip"), image_size=32, batch_size=1))
    CLIPVisionModel.from_pretrained(tmp_path / "clip").save_pretrained(tmp_path / "vision")
    given = ExtractionSettings(
        saved(tmp_path, "clip_vision"), weights=str(tmp_path / "vision"), image_size=32, batch_size=1
    )
    assert build_backbone(given).weight_digest == whole.weight_digest


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    name = saved(tmp_path, "clip_vision")
    other = saved(tmp_path, "registers").removeprefix("hf/")
    with pytest.raises(IncompatibleError, match=r"The weights in .*registers do not fit hf/.*clip_vision: missing \["):
        build_backbone(ExtractionSettings(name, weights=other, image_size=32))


def test_a_hidden_state_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"features\.layer is 3, but the backbone has 3 hidden states: 0 \(embed"):
        build_backbone(ExtractionSettings(saved(tmp_path, "clip"), image_size=32, layer=3))


def test_a_model_that_cannot_be_had_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"hf/nobody/nothing could not be had: .*a folder with config\.json"):
        build_backbone(ExtractionSettings("hf/nobody/nothing"))
    name = saved(tmp_path, "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(InputDataError, match=r"clip could not be had: .*and preprocessor_config"):
        build_backbone(ExtractionSettings(name))
