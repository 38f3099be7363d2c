"""Settings to model: each method's parts, and how they start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import T5ForConditionalGeneration

from dept_vl.config import BackboneSettings, MethodSettings, Settings, TaskSettings, VisualSettings
from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.soft_prompt import SoftPrompt
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

METHODS = ("dept", "prompt", "visual_only", "full")
DEPT = Settings(
    method=MethodSettings(name="dept", budget_length=10, prompt_length=4),
    tasks={"vqa": TaskSettings(max_text_length=8)},
)


def build(settings: Settings, backbone: Backbone, *, seed: int = 0) -> BuiltModel:
    return build_model(settings, backbone, visual_tokens=4, feature_width=6, seed=seed)


def with_method(**changes: object) -> Settings:
    return replace(DEPT, method=replace(DEPT.method, **changes))


def prompt_of(built: BuiltModel) -> DecomposedPrompt:
    assert isinstance(built.model.encoder.prompt, DecomposedPrompt)
    return built.model.encoder.prompt


def test_dept_has_a_short_prompt_and_the_rank_of_its_budget(backbone: Backbone) -> None:
    prompt = prompt_of(build(DEPT, backbone))
    assert prompt.prompt.shape == (4, 16)
    assert prompt.a.shape == (8, 4)  # (10 - 4) * 16 / (8 + 16)
    assert prompt.b.shape == (4, 16)
    assert prompt.trained_length == 0


def test_prompt_tuning_spends_the_whole_budget_on_its_prompt(backbone: Backbone) -> None:
    prompt = build(with_method(name="prompt"), backbone).model.encoder.prompt
    assert type(prompt) is SoftPrompt
    assert prompt.prompt.shape == (10, 16)


@pytest.mark.parametrize("method", ["visual_only", "full"])
def test_other_methods_have_no_prompt(backbone: Backbone, method: str) -> None:
    assert build(with_method(name=method), backbone).model.encoder.prompt is None


def test_overspending_is_refused(backbone: Backbone) -> None:
    with pytest.raises(UsageError, match=r"method.rank \(r\) is 5: with m=4, s=8, d=16"):
        build(with_method(rank=5), backbone)


@pytest.mark.parametrize("method", METHODS)
def test_notes_tell_the_sizes_and_what_trains(backbone: Backbone, method: str) -> None:
    notes = build(with_method(name=method), backbone).notes
    assert notes[-1].startswith("trainable parameters: ")
    assert f" of {method} itself" in notes[-1]
    assert notes[:-1] == (["DePT: l=10 m=4 s=8 d=16 r=4: 160 of 160 parameters"] if method == "dept" else [])


@pytest.mark.parametrize("method", ["dept", "visual_only"])
def test_training_starts_at_the_frozen_model(backbone: Backbone, make_batch: Callable[..., Batch], method: str) -> None:
    """A zero low-rank update equals none: without a prompt, DePT and no method at all are the same function."""
    model = build(with_method(name=method, prompt_length=0), backbone).model.eval()
    reference = build(with_method(name="visual_only"), backbone).model.eval()
    batch = make_batch((5, 3))
    assert torch.equal(model.loss(batch).loss, reference.loss(batch).loss)


@pytest.mark.parametrize("method", METHODS)
def test_the_start_is_a_function_of_the_seed_alone(backbone: Backbone, method: str) -> None:
    def start(seed: int, global_seed: int) -> list[torch.Tensor]:
        torch.manual_seed(global_seed)
        groups = build(with_method(name=method), backbone, seed=seed).groups
        return [value for group in groups if group.name != "backbone" for value in group.parameters.values()]

    def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(map(torch.equal, one, other))

    assert equal(start(0, global_seed=1), start(0, global_seed=2))
    assert not equal(start(0, global_seed=1), start(1, global_seed=1))


def test_building_draws_nothing_from_the_global_generator(backbone: Backbone) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build(DEPT, backbone)
    assert torch.equal(torch.rand(3), expected)


def test_the_vocabulary_start_takes_whole_embeddings_of_words(backbone: Backbone) -> None:
    embeddings = backbone.t5.shared.weight.detach()
    prompt = prompt_of(build(with_method(prompt_length=10), backbone)).prompt.detach()
    rows = [[torch.equal(row, embedding) for embedding in embeddings].index(True) for row in prompt]
    assert not set(rows) & set(backbone.tokenizer.all_special_ids)


def test_the_vocabulary_start_skips_rows_that_only_fill_up_the_table(
    make_t5: Callable[..., T5ForConditionalGeneration], backbone: Backbone
) -> None:
    padded = backbone._replace(t5=make_t5(vocab_size=5000))
    prompt = prompt_of(build(with_method(prompt_length=10), padded)).prompt.detach()
    words = padded.t5.shared.weight.detach()[: len(padded.tokenizer)]
    assert all(any(torch.equal(row, word) for word in words) for row in prompt)


def test_the_text_start_repeats_the_text_with_its_end_token(backbone: Backbone) -> None:
    text = with_method(prompt_length=8, prompt_init="text", prompt_text="what color ?")
    prompt = prompt_of(build(text, backbone)).prompt.detach()
    ids = backbone.tokenizer("what color ?")["input_ids"]
    assert ids[-1] == backbone.tokenizer.eos_token_id
    assert torch.equal(prompt, backbone.t5.shared.weight.detach()[[*ids, *ids]])


def test_the_normal_start_is_standard_normal(backbone: Backbone) -> None:
    settings = with_method(name="prompt", budget_length=500, prompt_init="normal")
    prompt = build(settings, backbone).model.encoder.prompt
    assert prompt is not None
    assert prompt.prompt.std().item() == pytest.approx(1, abs=0.05)


def test_a_starts_as_the_settings_say_and_b_at_zero(backbone: Backbone) -> None:
    official = prompt_of(build(DEPT, backbone))
    assert official.a.abs().max() <= 0.5  # 1 / sqrt(4)
    paper = prompt_of(build(with_method(low_rank_init="paper"), backbone))
    assert paper.a.abs().max() > 1
    assert not official.b.any()
    assert not paper.b.any()


@pytest.mark.parametrize(
    ("name", "rank", "scale"),
    [("paper", 4, 1.0), ("official", 4, 4.0), ("official", 1, 8.0), ("official", 3, 8 / 3**0.5)],
)
def test_the_scale_is_one_or_eight_over_the_root_of_the_rank(
    backbone: Backbone, name: str, rank: int, scale: float
) -> None:
    assert prompt_of(build(with_method(low_rank_scale=name, rank=rank), backbone)).scale == pytest.approx(scale)


@pytest.mark.parametrize(("rank", "scale"), [(15, 2.07), (24, 1.63), (30, 1.46), (45, 1.19)])
def test_official_scales_are_the_published_ones(backbone: Backbone, rank: int, scale: float) -> None:
    settings = replace(
        DEPT,
        method=MethodSettings(budget_length=1000, prompt_length=4, rank=rank, low_rank_scale="official"),
        tasks={"vqa": TaskSettings(max_text_length=64)},
    )
    assert prompt_of(build(settings, backbone)).scale == pytest.approx(scale, abs=0.005)


def test_position_rule_and_area_come_from_the_settings(backbone: Backbone) -> None:
    ours = build(DEPT, backbone).model.encoder
    theirs = build(replace(DEPT, visual=VisualSettings("vl_t5", "vl_t5")), backbone).model.encoder
    assert not ours.vl_t5_positions
    assert theirs.vl_t5_positions
    assert ours.visual_embedding is not None
    assert theirs.visual_embedding is not None
    assert not ours.visual_embedding.vl_t5_area
    assert theirs.visual_embedding.vl_t5_area


def test_a_task_without_images_has_no_visual_embedding(backbone: Backbone) -> None:
    text_only = replace(DEPT, tasks={"vqa": replace(DEPT.task, images_per_example=0)})
    assert build(text_only, backbone).model.encoder.visual_embedding is None


def test_the_visual_embedding_has_the_sizes_of_store_and_task(backbone: Backbone) -> None:
    two = replace(DEPT, tasks={"vqa": replace(DEPT.task, images_per_example=2)})
    visual = build(two, backbone).model.encoder.visual_embedding
    assert visual is not None
    assert visual.feature_projection.weight.shape == (16, 6)
    assert visual.image_order.weight.shape == (2, 16)
    assert visual.object_order.weight.shape == (4, 16)
    assert visual.feature_norm.eps == backbone.t5.config.layer_norm_epsilon


def test_the_recipe_of_the_embedded_backbone_fits_its_budget() -> None:
    backbone = load_backbone(BackboneSettings(name="t5-mini"))
    demo = replace(
        DEPT,
        method=MethodSettings(budget_length=40, prompt_length=20, rank=18),
        tasks={"vqa": TaskSettings(max_text_length=28)},
    )
    built = build(demo, backbone)
    assert built.notes[0] == "DePT: l=40 m=20 s=28 d=256 r=18: 10,232 of 10,240 parameters"
    assert built.trainable.own == 10_232
    half = load_backbone(BackboneSettings(name="t5-mini"), dtype=torch.bfloat16)
    assert all(
        value.dtype == torch.float32 for group in build(demo, half).groups for value in group.parameters.values()
    )
