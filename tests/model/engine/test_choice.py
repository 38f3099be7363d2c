"""Which layers a model is built on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from dept_vl.model.backbone import Backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.engine.family import LeanEncoderDecoder
from dept_vl.model.families import EncoderDecoder
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.settings import BackboneSettings, MethodSettings, Settings, TaskSettings
from feature_extraction.errors import UsageError

SETTINGS = Settings(
    method=MethodSettings(budget_length=20, prompt_length=4),
    tasks={"vqa": TaskSettings(max_text_length=8, max_target_length=4)},
)
TEXT = replace(SETTINGS, tasks={"vqa": TaskSettings(max_text_length=8, images_per_example=0)})


def build(settings: Settings, backbone: Backbone, **backbone_settings: object) -> BuiltModel:
    settings = replace(settings, backbone=BackboneSettings(**backbone_settings))
    return build_model(settings, backbone, visual_tokens=4, feature_width=6, seed=0)


def is_lean(built: BuiltModel) -> bool:
    encoder, family = built.model.encoder, built.model.heads["vqa"].family
    lean = isinstance(encoder, MultimodalEncoder) and encoder.lean is not None
    assert lean == (type(family) is LeanEncoderDecoder)
    assert lean or type(family) is EncoderDecoder
    return lean


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a GPU; models are built on the CPU all the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_without_a_gpu_the_librarys_layers_are_used_unless_others_are_asked_for(backbone: Backbone) -> None:
    built = build(SETTINGS, backbone)
    assert not is_lean(built)
    assert not [note for note in built.notes if "layers" in note]


def test_lean_layers_can_be_asked_for(backbone: Backbone) -> None:
    built = build(SETTINGS, backbone, engine="lean")
    assert is_lean(built)
    assert "Lean T5 layers" in built.notes


def test_on_a_gpu_lean_layers_are_used_and_compiled(backbone: Backbone, on_gpu: None) -> None:
    built = build(SETTINGS, backbone)
    assert is_lean(built)
    assert "Lean T5 layers, compiled" in built.notes
    assert isinstance(built.model.encoder, MultimodalEncoder)
    assert built.model.encoder.lean is not None
    assert built.model.encoder.lean.alignment == 8


def test_compiling_can_be_turned_off(backbone: Backbone, on_gpu: None) -> None:
    assert "Lean T5 layers" in build(SETTINGS, backbone, compiled=False).notes


def test_on_a_gpu_the_librarys_layers_can_be_asked_for(backbone: Backbone, on_gpu: None) -> None:
    built = build(SETTINGS, backbone, engine="library")
    assert not is_lean(built)
    assert not [note for note in built.notes if "layers" in note]


@pytest.mark.parametrize("method", ["lora", "adapter", "prefix", "lst", "ln_tuning", "full", "dept_lora"])
def test_methods_that_change_the_layers_keep_the_librarys(method: str, backbone: Backbone, on_gpu: None) -> None:
    settings = replace(SETTINGS, method=MethodSettings(name=method, budget=1000, prompt_length=1))
    built = build(settings, backbone)
    assert not is_lean(built)
    assert (
        f"The library's layers are used, not the lean ones: method {method} works inside the library's layers"
        in built.notes
    )


def test_lean_layers_are_refused_where_the_method_changes_the_librarys(backbone: Backbone) -> None:
    settings = replace(SETTINGS, method=MethodSettings(name="lora", budget=1000))
    message = "backbone.engine is 'lean', but method lora works inside the library's layers. Set backbone.engine=auto"
    with pytest.raises(UsageError, match=message):
        build(settings, backbone, engine="lean")


def test_lean_layers_are_refused_for_other_models(backbone: Backbone) -> None:
    config = BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    other = backbone._replace(model=BartForConditionalGeneration(config))
    message = "backbone.engine is 'lean', but t5-mini is of type bart, and they are those of a T5"
    with pytest.raises(UsageError, match=message):
        build(TEXT, other, engine="lean")


def test_lean_layers_are_refused_for_quantised_weights(backbone: Backbone) -> None:
    message = r"backbone.engine is 'lean', but its weights are quantised \(8bit\)"
    with pytest.raises(UsageError, match=message):
        build(SETTINGS, backbone, engine="lean", quantization="8bit")


def test_no_weight_is_held_twice(backbone: Backbone) -> None:
    before = sum(value.numel() for value in backbone.model.parameters())
    built = build(SETTINGS, backbone, engine="lean")
    frozen = sum(value.numel() for value in built.model.parameters() if not value.requires_grad)
    assert frozen <= before
    assert not list(built.model.backbone.encoder.block)
    # What is reported is the library's count, whatever the engine.
    assert built.trainable.total == before + built.trainable.trained
