"""What trains with each method, in which group, and how many parameters that is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dept_vl.model.backbone import Backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.trainable import TrainableCount
from dept_vl.settings import MethodSettings, OptimizerSettings, Settings, TaskSettings
from dept_vl.training.optimizer import make_optimizer
from dept_vl.types import Batch

MakeBatch = Callable[..., Batch]

GROUPS = {
    "dept": ["prompt", "low_rank", "visual"],
    "prompt": ["prompt", "visual"],
    "visual_only": ["visual"],
    "full": ["visual", "backbone"],
}
ANSWERS = ("red", "blue", "yes", "two", "no")


def build(backbone: Backbone, method: str, *, images: int = 1, head: str = "generation", **sizes: int) -> BuiltModel:
    settings = Settings(
        method=MethodSettings(name=method, **({"budget_length": 10, "prompt_length": 4} | sizes)),
        tasks={"vqa": TaskSettings(max_text_length=8, images_per_example=images, head=head)},
    )
    return build_model(settings, backbone, visual_tokens=4, feature_width=6, seed=0, answers={"vqa": ANSWERS})


def everything(built: BuiltModel) -> dict[str, Tensor]:
    """Copies of all parameters of a model, by their own names."""
    return {name: value.detach().clone() for name, value in built.model.named_parameters()}


@pytest.mark.parametrize("method", GROUPS)
def test_each_method_has_its_groups(backbone: Backbone, method: str) -> None:
    assert [group.name for group in build(backbone, method).groups] == GROUPS[method]


@pytest.mark.parametrize("method", GROUPS)
def test_a_classification_head_is_a_group_of_its_own_behind_the_visual_embedding(
    backbone: Backbone, method: str
) -> None:
    names = [group.name for group in build(backbone, method, head="classification").groups]
    place = names.index("visual") + 1
    assert names[place] == "head"
    assert names[:place] + names[place + 1 :] == GROUPS[method]


@pytest.mark.parametrize("head", ["generation", "first_step", "classification"])
@pytest.mark.parametrize("method", GROUPS)
def test_what_requires_a_gradient_is_exactly_what_stands_in_a_group(backbone: Backbone, method: str, head: str) -> None:
    built = build(backbone, method, head=head)
    grouped = [id(value) for group in built.groups for value in group.parameters.values()]
    assert len(set(grouped)) == len(grouped)
    assert {id(value) for value in built.model.parameters() if value.requires_grad} == set(grouped)


@pytest.mark.parametrize("head", ["generation", "first_step", "classification"])
@pytest.mark.parametrize("method", GROUPS)
def test_training_moves_the_parameters_of_the_groups_and_not_a_byte_of_the_others(
    backbone: Backbone, make_batch: MakeBatch, method: str, head: str
) -> None:
    built = build(backbone, method, head=head)
    before = everything(built)
    optimizer = make_optimizer(built.groups, OptimizerSettings())
    for _ in range(2):  # the first step moves B alone, since the gradient of A is a multiple of B, which is zero
        built.model.train()(make_batch((5, 3), answers=5)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = {id(value) for group in built.groups for value in group.parameters.values()}
    moved = {name for name, value in built.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in built.model.named_parameters() if id(value) in trained}


def test_groups_carry_their_own_learning_rate_and_weight_decay(backbone: Backbone) -> None:
    rates = {"prompt": (0.3, 1e-5), "low_rank": (1e-3, 1e-5), "visual": (1e-3, 0.01), "backbone": (1e-4, 0.01)}
    rates["head"] = (1e-3, 0.01)
    for method in ("dept", "full"):
        for group in build(backbone, method, head="classification").groups:
            assert (group.learning_rate, group.weight_decay) == rates[group.name]


def test_names_are_those_of_the_adapter_file(backbone: Backbone) -> None:
    names = {name for group in build(backbone, "dept").groups for name in group.parameters}
    assert names == {
        "prompt.prompt",
        "prompt.a",
        "prompt.b",
        "visual_embedding.feature_projection.weight",
        "visual_embedding.feature_projection.bias",
        "visual_embedding.feature_norm.weight",
        "visual_embedding.box_projection.weight",
        "visual_embedding.box_projection.bias",
        "visual_embedding.box_norm.weight",
        "visual_embedding.image_order.weight",
        "visual_embedding.object_order.weight",
    }
    head = build(backbone, "visual_only", head="classification").groups[-1]
    assert set(head.parameters) == {
        f"heads.vqa.layers.{layer}.{part}" for layer in (0, 2, 3) for part in ("weight", "bias")
    }
    full = {name for group in build(backbone, "full").groups for name in group.parameters}
    assert {name for name in full if not name.startswith("visual_embedding.")} == {
        f"backbone.{name}" for name, _ in backbone.model.named_parameters()
    }


def test_own_and_visual_parameters_are_counted_apart(backbone: Backbone) -> None:
    t5 = sum(value.numel() for value in backbone.model.parameters())
    visual = (6 * 16 + 16) + 16 + (5 * 16 + 16) + 16 + 1 * 16 + 4 * 16
    own = 4 * 16 + (8 + 16) * 4  # m d + (s + d) r, all of l d = 160
    count = build(backbone, "dept").trainable
    assert own == 160
    assert count == TrainableCount(own=own, visual=visual, heads=0, total=t5 + own + visual)
    assert build(backbone, "prompt").trainable == TrainableCount(
        own=160, visual=visual, heads=0, total=t5 + 160 + visual
    )
    assert build(backbone, "visual_only").trainable == TrainableCount(own=0, visual=visual, heads=0, total=t5 + visual)
    assert build(backbone, "full").trainable == TrainableCount(own=t5, visual=visual, heads=0, total=t5 + visual)


def test_classification_heads_are_counted_apart(backbone: Backbone) -> None:
    plain, count = (build(backbone, "dept", head=head).trainable for head in ("generation", "classification"))
    head = (16 * 32 + 32) + 2 * 32 + (32 * 5 + 5)  # H, 2 H and A
    assert count == plain._replace(heads=head, total=plain.total + head)
    assert count.trained == 160 + plain.visual + head
    assert count.describe("dept").startswith(
        f"trainable parameters: 160 of dept itself + {plain.visual} of the visual embedding + {head} of classification "
        f"heads = {count.trained:,} ("
    )


def test_the_percentage_is_of_the_model_with_its_added_parts() -> None:
    count = TrainableCount(own=76_800, visual=1_600_000, heads=0, total=224_580_000)
    assert count.percent == pytest.approx(0.7466, abs=1e-4)
    assert count.describe("dept") == (
        "trainable parameters: 76,800 of dept itself + 1,600,000 of the visual embedding = 1,676,800 "
        "(0.75 % of 224,580,000)"
    )


def test_parts_without_numbers_make_no_group(backbone: Backbone, make_batch: MakeBatch) -> None:
    no_prompt = build(backbone, "dept", prompt_length=0)
    assert [group.name for group in no_prompt.groups] == ["low_rank", "visual"]
    no_rank = build(backbone, "dept", prompt_length=10)
    assert [group.name for group in no_rank.groups] == ["prompt", "visual"]
    no_images = build(backbone, "dept", images=0)
    assert [group.name for group in no_images.groups] == ["prompt", "low_rank"]
    for built in (no_prompt, no_rank):
        trained = {id(value) for group in built.groups for value in group.parameters.values()}
        assert {id(value) for value in built.model.parameters() if value.requires_grad} == trained
        built.model(make_batch((5, 3))).loss.backward()
        assert all(value.grad is not None for group in built.groups for value in group.parameters.values())


def test_building_another_method_on_the_same_backbone_freezes_it_again(backbone: Backbone) -> None:
    build(backbone, "full")
    build(backbone, "dept")
    assert not any(value.requires_grad for value in backbone.model.parameters())
