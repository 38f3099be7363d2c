"""Settings to model: each method's parts, and how they start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from transformers import T5ForConditionalGeneration

from dept_vl.model.adapter import trained_tensors
from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.heads import ClassificationHead, FirstStepHead, GenerationHead
from dept_vl.model.soft_prompt import SoftPrompt
from dept_vl.settings import BackboneSettings, MethodSettings, OptimizerSettings, Settings, TaskSettings, VisualSettings
from dept_vl.training.optimizer import make_optimizer
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

METHODS = ("dept", "prompt", "visual_only", "full")
DEPT = Settings(
    method=MethodSettings(name="dept", budget_length=10, prompt_length=4),
    tasks={"vqa": TaskSettings(max_text_length=8)},
)


TWO = replace(DEPT, tasks={"vqa": TaskSettings(max_text_length=8), "nlvr2": TaskSettings("nlvr2", max_text_length=6)})
ANSWERS = {"vqa": ("red", "blue", "two"), "nlvr2": ("true", "false")}


def build(settings: Settings, backbone: Backbone, *, seed: int = 0) -> BuiltModel:
    return build_model(settings, backbone, visual_tokens=4, feature_width=6, seed=seed, answers=ANSWERS)


def per_task(settings: Settings = TWO) -> Settings:
    """The settings with a prompt for each task."""
    return replace(settings, method=replace(settings.method, prompt_sharing="per_task"))


def with_task(**changes: object) -> Settings:
    return replace(DEPT, tasks={"vqa": replace(DEPT.task, **changes)})


def steps(built: BuiltModel, *batches: Batch) -> Iterator[dict[str, torch.Tensor]]:
    """The trained tensors after each step of training, with weight decay in every group."""
    optimizer = make_optimizer([group._replace(weight_decay=0.1) for group in built.groups], OptimizerSettings())
    for batch in batches:
        built.model.train()(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield trained_tensors(built.model, built.groups)


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
    (prompt,) = build(with_method(name="prompt"), backbone).model.encoder.prompts().values()
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
    embeddings = backbone.model.shared.weight.detach()
    prompt = prompt_of(build(with_method(prompt_length=10), backbone)).prompt.detach()
    rows = [[torch.equal(row, embedding) for embedding in embeddings].index(True) for row in prompt]
    assert not set(rows) & set(backbone.tokenizer.all_special_ids)


def test_the_vocabulary_start_skips_rows_that_only_fill_up_the_table(
    make_t5: Callable[..., T5ForConditionalGeneration], backbone: Backbone
) -> None:
    padded = backbone._replace(model=make_t5(vocab_size=5000))
    prompt = prompt_of(build(with_method(prompt_length=10), padded)).prompt.detach()
    words = padded.model.shared.weight.detach()[: len(padded.tokenizer)]
    assert all(any(torch.equal(row, word) for word in words) for row in prompt)


def test_the_text_start_repeats_the_text_with_its_end_token(backbone: Backbone) -> None:
    text = with_method(prompt_length=8, prompt_init="text", prompt_text="what color ?")
    prompt = prompt_of(build(text, backbone)).prompt.detach()
    ids = backbone.tokenizer("what color ?")["input_ids"]
    assert ids[-1] == backbone.tokenizer.eos_token_id
    assert torch.equal(prompt, backbone.model.shared.weight.detach()[[*ids, *ids]])


def test_the_normal_start_is_standard_normal(backbone: Backbone) -> None:
    settings = with_method(name="prompt", budget_length=500, prompt_init="normal")
    (prompt,) = build(settings, backbone).model.encoder.prompts().values()
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
    assert visual.feature_norm.eps == backbone.model.config.layer_norm_epsilon


def test_each_task_has_the_head_of_its_settings(backbone: Backbone) -> None:
    task = TaskSettings(max_target_length=7, num_beams=3, loss="token")
    tasks = {
        "vqa": replace(task, constrained=True),
        "caption": task,
        "nlvr2": replace(task, head="first_step"),
        "gqa": replace(task, name="gqa", head="classification"),
    }
    answers = ANSWERS | {"gqa": ("yes", "no")}
    settings = replace(DEPT, tasks=tasks)
    heads = build_model(settings, backbone, visual_tokens=4, feature_width=6, seed=0, answers=answers).model.heads
    assert list(heads) == list(tasks)
    constrained, free, first_step, classes = heads.values()
    assert type(free) is type(constrained) is GenerationHead
    for head in (free, constrained):
        assert (head.max_length, head.num_beams, head.token_mean) == (7, 3, True)
    assert free.trie is None
    assert constrained.trie is not None
    assert isinstance(first_step, FirstStepHead)
    assert (first_step.labels, first_step.max_length) == (["true", "false"], 7)
    assert isinstance(classes, ClassificationHead)
    assert classes.vocabulary == ["yes", "no"]
    assert not with_task().task.constrained
    plain = build(DEPT, backbone).model.heads["vqa"]
    assert isinstance(plain, GenerationHead)
    assert not plain.token_mean


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"head": "classification"}, "task.head=classification, task.constrained=false"),
        ({"constrained": True}, "task.head=generation, task.constrained=true"),
    ],
)
@pytest.mark.parametrize("answers", [None, {}, {"vqa": []}, {"gqa": ["yes"]}])
def test_a_head_that_needs_answers_is_refused_without_them(
    backbone: Backbone, change: dict[str, object], told: str, answers: dict[str, list[str]] | None
) -> None:
    with pytest.raises(UsageError) as raised:
        build_model(with_task(**change), backbone, visual_tokens=4, feature_width=6, seed=0, answers=answers)
    assert str(raised.value) == (
        f"Task vqa is to answer from a list ({told}), but none is given. Training makes it from the training examples"
    )


def test_several_tasks_share_one_prompt_of_the_longest_texts(backbone: Backbone) -> None:
    built = build(TWO, backbone)
    prompt = prompt_of(built)
    assert prompt.a.shape == (8, 4)
    assert [name for group in built.groups for name in group.parameters][:3] == [
        "prompt.prompt",
        "prompt.a",
        "prompt.b",
    ]
    assert list(built.model.encoder.prompts()) == ["prompt"]


def test_each_task_may_have_its_own_prompt_of_its_own_text_length(backbone: Backbone) -> None:
    built = build(per_task(), backbone)
    prompts = built.model.encoder.prompts()
    assert list(prompts) == ["prompt.vqa", "prompt.nlvr2"]
    sizes = [(len(one.prompt), one.a.shape) for one in prompts.values() if isinstance(one, DecomposedPrompt)]
    assert sizes == [(4, (8, 4)), (4, (6, 4))]  # (10 - 4) * 16 // (6 + 16) = 4
    groups = {group.name: list(group.parameters) for group in built.groups}
    assert groups["prompt"] == ["prompt.vqa.prompt", "prompt.nlvr2.prompt"]
    assert groups["low_rank"] == ["prompt.vqa.a", "prompt.vqa.b", "prompt.nlvr2.a", "prompt.nlvr2.b"]
    assert built.notes[:2] == [
        "vqa: DePT: l=10 m=4 s=8 d=16 r=4: 160 of 160 parameters",
        "nlvr2: DePT: l=10 m=4 s=6 d=16 r=4: 152 of 160 parameters",
    ]
    assert built.trainable.own == 160 + 152


def test_tasks_do_not_start_from_the_same_prompt(backbone: Backbone) -> None:
    one, other = build(per_task(), backbone).model.encoder.prompts().values()
    assert not torch.equal(one.prompt, other.prompt)


@pytest.mark.parametrize("method", ["visual_only", "full"])
def test_methods_without_a_prompt_have_none_for_any_task(backbone: Backbone, method: str) -> None:
    settings = per_task(replace(TWO, method=replace(TWO.method, name=method)))
    assert build(settings, backbone).model.encoder.prompt is None


@pytest.mark.parametrize("method", ["dept", "prompt"])
def test_a_step_of_one_task_leaves_every_byte_of_the_other_s_prompt_and_head(
    backbone: Backbone, make_batch: Callable[..., Batch], method: str
) -> None:
    tasks = {name: replace(task, head="classification") for name, task in TWO.tasks.items()}
    built = build(per_task(replace(TWO, tasks=tasks, method=replace(TWO.method, name=method))), backbone)
    sizes = {"vqa": 3, "nlvr2": 2}
    turns = ("vqa", "vqa", "nlvr2", "nlvr2", "vqa", "nlvr2")  # also where the optimizer has a momentum of the other
    before = trained_tensors(built.model, built.groups)
    batches = [make_batch((5, 3), task=task, answers=sizes[task], seed=seed) for seed, task in enumerate(turns)]
    seen: set[str] = set()
    for task, after in zip(turns, steps(built, *batches), strict=True):
        (other,) = sizes.keys() - {task}
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        own = {name for name in after if other not in name and not name.endswith("trained_length")}
        # The first step of a prompt moves B and not A, whose gradient is a multiple of B, but for the weight decay.
        assert moved - {f"prompt.{task}.trained_length"} == own
        seen |= moved
        before = after
    assert seen == set(before)


def test_steps_of_two_tasks_move_the_one_prompt_that_they_share(
    backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    built = build(TWO, backbone)
    prompt = prompt_of(built)
    for task in ("vqa", "nlvr2"):
        before = prompt.prompt.detach().clone()
        list(steps(built, make_batch((5, 3), task=task)))
        assert not torch.equal(prompt.prompt, before)
    assert sum(value is prompt.prompt for value in built.model.parameters()) == 1


def test_with_a_prompt_of_its_own_a_task_is_answered_by_that_one(
    backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    """As by a model of this task alone that has the same prompt."""
    both, alone = build(per_task(), backbone), build(replace(TWO, tasks={"nlvr2": TWO.tasks["nlvr2"]}), backbone)
    batch = make_batch((5, 3), task="nlvr2")
    prompts = [both.model.encoder.prompts()["prompt.nlvr2"], alone.model.encoder.prompts()["prompt"]]
    losses = [built.model.eval().loss(batch).loss for built in (both, alone)]
    assert not torch.equal(*losses)
    prompts[1].load_state_dict(prompts[0].state_dict())
    assert torch.equal(losses[0], alone.model.loss(batch).loss)


def test_the_visual_embedding_has_room_for_the_task_of_most_images(backbone: Backbone) -> None:
    tasks = {"vqa": TWO.tasks["vqa"], "nlvr2": replace(TWO.tasks["nlvr2"], images_per_example=2)}
    visual = build(replace(TWO, tasks=tasks), backbone).model.encoder.visual_embedding
    assert visual is not None
    assert visual.image_order.weight.shape == (2, 16)


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
