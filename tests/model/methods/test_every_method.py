"""Every method with every kind of task, on tiny models: trains, answers, keeps to its budget, is saved and restored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from dept_vl.config import layer_names
from dept_vl.model.adapter import restore_tensors, trained_tensors
from dept_vl.model.backbone import Backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.settings import MethodSettings, OptimizerSettings, Settings, TaskSettings
from dept_vl.training.optimizer import make_optimizer
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

MakeBatch = Callable[..., Batch]

METHODS = sorted(set(layer_names("method")) - {"bitfit"})  # a T5 has no biases
TASKS = {  # a kind of task: its settings, and the images of its batches
    "vqa": TaskSettings(name="vqa", images_per_example=1),
    "constrained": TaskSettings(name="constrained", images_per_example=1, constrained=True, num_beams=2),
    "vqa_classification": TaskSettings(name="vqa_classification", images_per_example=1, head="classification"),
    "nlvr2": TaskSettings(name="nlvr2", images_per_example=2, head="first_step"),
    "caption": TaskSettings(name="caption", images_per_example=1, num_beams=3, loss="token"),
    "text": TaskSettings(name="text", images_per_example=0),
    "text_classification": TaskSettings(name="text_classification", images_per_example=0, head="classification"),
}
ANSWERS = ("red", "blue", "yes", "two", "no")
MATRIX = [(method, task) for method in METHODS for task in TASKS if method != "visual_only" or "text" not in task]
FIXED_SIZE = {"ln_tuning", "ia3"}


def build(backbone: Backbone, method: str, *tasks: str, **sizes: int | str | None) -> BuiltModel:
    chosen = {name: replace(TASKS[name], max_text_length=8, max_target_length=4) for name in tasks or ("vqa",)}
    values = {"budget_length": 20, "prompt_length": 4, "token_dropout": 0.0} | sizes
    settings = Settings(method=MethodSettings(name=method, **values), tasks=chosen)
    fresh = backbone._replace(model=copy.deepcopy(backbone.model))
    answers = dict.fromkeys(chosen, ANSWERS)
    built = build_model(settings, fresh, visual_tokens=4, feature_width=6, seed=0, answers=answers)
    for module in built.model.modules():
        # No dropout, so that a few steps lower the loss for certain.
        for name, value in vars(module).items():
            if name in ("p", "dropout") and isinstance(value, float):
                setattr(module, name, 0.0)
    return built


def batch_of(make_batch: MakeBatch, task: str, **options: int) -> Batch:
    return make_batch((5, 3), images=TASKS[task].images_per_example, task=task, answers=5, **options)


def steps(built: BuiltModel, batch: Batch, count: int = 4) -> None:
    # The steps are small enough to go down for certain.
    optimizer = make_optimizer([group._replace(learning_rate=3e-4) for group in built.groups], OptimizerSettings())
    for _ in range(count):
        built.model.train()(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    built.model.eval()


@pytest.mark.parametrize(("method", "task"), MATRIX)
def test_a_method_trains_answers_and_comes_back_from_its_tensors(
    backbone: Backbone, make_batch: MakeBatch, method: str, task: str
) -> None:
    built, batch = build(backbone, method, task), batch_of(make_batch, task)
    built.model.eval()
    fresh = built.model(batch).loss.item()
    steps(built, batch)
    loss, answers = built.model(batch).loss.item(), built.model.answer(batch)
    assert loss < fresh
    assert len(answers) == 2
    again = build(backbone, method, task)
    restore_tensors(again.model, again.groups, trained_tensors(built.model, built.groups), Path("adapter"))
    again.model.eval()
    assert again.model(batch).loss.item() == loss
    assert again.model.answer(batch) == answers


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_counted_trains(backbone: Backbone, make_batch: MakeBatch, method: str) -> None:
    built = build(backbone, method, "caption")
    before = {name: value.detach().clone() for name, value in built.model.named_parameters()}
    steps(built, batch_of(make_batch, "caption"))
    moved = {name: value for name, value in built.model.named_parameters() if not torch.equal(value, before[name])}
    trained = {id(value) for group in built.groups for value in group.parameters.values()}
    assert {id(value) for value in moved.values()} == trained
    assert sum(value.numel() for value in moved.values()) == built.trainable.trained


@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_no_loss(backbone: Backbone, make_batch: MakeBatch, method: str) -> None:
    built, batch = build(backbone, method, "vqa"), batch_of(make_batch, "vqa")
    steps(built, batch)
    expected = built.model(batch).loss.item()
    for pad_left in (False, True):
        padded = batch_of(make_batch, "vqa", pad=3, pad_left=pad_left)
        assert built.model(padded).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_tasks_train_together(backbone: Backbone, make_batch: MakeBatch, method: str) -> None:
    built = build(backbone, method, "vqa", "nlvr2")
    batches = [batch_of(make_batch, task) for task in ("vqa", "nlvr2")]
    batches = [
        replace(one, visual_tokens=two, boxes=boxes, visual_mask=mask)
        for one, two, boxes, mask in (
            (one, *(_two_images(value) for value in (one.visual_tokens, one.boxes, one.visual_mask))) for one in batches
        )
    ]
    for batch in batches:
        steps(built, batch, count=1)
        assert len(built.model.answer(batch)) == 2


def _two_images(values: torch.Tensor) -> torch.Tensor:
    """Padded to two images: the second one is not there."""
    return values if values.shape[1] == 2 else torch.cat([values, torch.zeros_like(values)], dim=1)


@pytest.mark.parametrize("budget", [320, 700, 1600])
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"full", "visual_only"}))
def test_no_method_overspends_its_budget(backbone: Backbone, method: str, budget: int) -> None:
    built = build(backbone, method, budget=budget, placement=None)
    assert 0 < built.trainable.own <= budget
    # The rest would not pay for one more of anything that has a size.
    if method not in FIXED_SIZE and budget == 320:
        assert built.trainable.own > budget // 2


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"full", "visual_only"}))
def test_a_budget_too_small_is_refused_with_what_the_nearest_setting_costs(backbone: Backbone, method: str) -> None:
    with pytest.raises(UsageError, match=r"budget") as raised:
        build(backbone, method, budget=10)
    if method not in ("dept", "adept", "dept_adept", "dept_lora"):
        assert "cannot meet the budget of 10 parameters: " in str(raised.value)
        assert "the nearest setting, " in str(raised.value)


T5_BASE = {  # at 76,800 parameters: what is chosen, as docs/methods.md has it; test_prefix.py and test_ladder.py more
    "dept": 76_800,
    "prompt": 76_800,
    "adept": 76_061,
    "dept_adept": 75_025,
    "dept_lora": 76_800,
    "p_tuning": 75_336,
    "mpt": 76_130,
    "lora": 73_728,
    "ia3": 55_296,
    "adapter": 55_320,
    "adapter_drop": 75_306,
    "ln_tuning": 47_616,
}


@pytest.mark.parametrize("method", T5_BASE)
def test_the_sizes_chosen_for_t5_base(tokenizer: PreTrainedTokenizerFast, method: str) -> None:
    assert own_parameters_of_t5_base(tokenizer, name=method, budget=76_800) == T5_BASE[method] <= 76_800


@pytest.mark.parametrize(
    ("method", "sizes", "published"),
    [("lora", {"lora_rank": 150}, 18_169_344), ("adapter", {"width": 192}, 19_332_864)],
)
def test_published_settings_have_the_published_number_of_parameters(
    tokenizer: PreTrainedTokenizerFast, method: str, sizes: dict[str, int], published: int
) -> None:
    """LST's and VL-Adapter's scripts of CLIP-T5, whose counts have the visual embedding of 1,580,544 in them."""
    assert own_parameters_of_t5_base(tokenizer, name=method, **sizes) + 1_580_544 == published


def own_parameters_of_t5_base(tokenizer: PreTrainedTokenizerFast, **method: str | int) -> int:
    shapes = T5Config(
        vocab_size=29, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
    )
    # Without memory for its numbers, but for the embeddings, which prompts start from.
    with torch.device("meta"):
        model = T5ForConditionalGeneration(shapes)
    model.set_input_embeddings(torch.nn.Embedding(29, 768))
    settings = Settings(
        method=MethodSettings(**method),
        tasks={"rte": TaskSettings(name="rte", images_per_example=0, max_text_length=256)},
    )
    backbone = Backbone("t5-base", model, tokenizer, "", "")
    return build_model(settings, backbone, visual_tokens=0, feature_width=0, seed=0).trainable.own
