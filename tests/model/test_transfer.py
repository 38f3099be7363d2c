"""Starting from a source: the parts asked for, resized where that is possible, and refused whole where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from dept_vl.model.adapter import Adapter, adapter_identity, save_adapter, trained_tensors
from dept_vl.model.backbone import Backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.soft_prompt import SoftPrompt, TaskPrompts
from dept_vl.model.transfer import find_adapter, start_from
from dept_vl.settings import MethodSettings, Settings, TaskSettings, VisualSettings
from dept_vl.types import Batch
from feature_extraction.errors import IncompatibleError, InputDataError, UsageError

SOURCE = Path("runs/mnli/adapter")
FEATURES = {"backbone": "timm/tiny", "grid": 2}
ANSWERS = ["yes", "no", "two"]


def settings(
    method: str = "dept", *, task: str = "mnli", images: int = 0, area: str = "true", **changes: Any
) -> Settings:
    own = {name: changes.pop(name) for name in ("max_text_length", "head") if name in changes}
    values = {"budget_length": 10, "prompt_length": 4, "rank": 3, **changes}
    one = replace(TaskSettings(name=task, max_text_length=8, images_per_example=images), **own)
    return Settings(method=MethodSettings(name=method, **values), tasks={task: one}, visual=VisualSettings(area=area))


def build(chosen: Settings, backbone: Backbone, *, seed: int = 1, answers: list[str] = ANSWERS) -> BuiltModel:
    by_task = dict.fromkeys(chosen.tasks, answers)
    return build_model(chosen, backbone, visual_tokens=4, feature_width=6, seed=seed, answers=by_task)


def identity_of(backbone: Backbone, chosen: Settings, features: dict[str, Any] = FEATURES) -> dict[str, Any]:
    tasks = ",".join(chosen.tasks)
    return adapter_identity(backbone, task=tasks, method=chosen.method.name, features=features)


def source_of(
    backbone: Backbone, chosen: Settings, *, trained_length: int = 5, answers: list[str] = ANSWERS
) -> Adapter:
    """An adapter whose tensors are all unlike those of a fresh model."""
    tensors = trained_tensors(*build(chosen, backbone, seed=9, answers=answers)[:2])
    generator = torch.Generator().manual_seed(3)
    trained = {
        name: torch.tensor(trained_length)
        if name.endswith("trained_length")
        else torch.randn(value.shape, generator=generator)
        for name, value in tensors.items()
    }
    heads = {name: answers for name, task in chosen.tasks.items() if task.head == "classification"}
    return Adapter(identity_of(backbone, chosen), asdict(chosen), trained, heads)


def start(
    backbone: Backbone, chosen: Settings, source: Adapter, *, parts: str = "all", path: Path = SOURCE, **more: Any
) -> tuple[BuiltModel, list[str]]:
    features = more.pop("features", FEATURES)
    built = build(chosen, backbone, **more)
    identity = identity_of(backbone, chosen, features)
    return built, start_from(built.model, built.groups, source, parts=parts, identity=identity, path=path)


def refused(backbone: Backbone, chosen: Settings, source: Adapter, *, parts: str = "all", **more: Any) -> str:
    """The message of a refusal, which leaves the model as it was; one blank for several."""
    features = more.pop("features", FEATURES)
    built = build(chosen, backbone, **more)
    before = everything(built)
    identity = identity_of(backbone, chosen, features)
    with pytest.raises((IncompatibleError, UsageError)) as caught:
        start_from(built.model, built.groups, source, parts=parts, identity=identity, path=SOURCE)
    assert all(torch.equal(value, before[name]) for name, value in everything(built).items())
    return " ".join(str(caught.value).split())


def everything(built: BuiltModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in built.model.state_dict().items()}


def prompt_of(built: BuiltModel) -> DecomposedPrompt:
    prompt = built.model.encoder.prompt
    assert isinstance(prompt, DecomposedPrompt)
    return prompt


class TestParts:
    def test_all_is_p_a_and_b_and_the_rows_that_were_trained(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings())
        built, notes = start(backbone, settings(task="cb"), source)
        state = trained_tensors(built.model, built.groups)
        assert all(torch.equal(state[name], value) for name, value in source.tensors.items())
        assert prompt_of(built).trained_length == 5
        assert notes == [f"Starting from {SOURCE} (dept trained on mnli): P, A, B"]

    def test_of_all_the_model_does_what_the_source_does(
        self, backbone: Backbone, make_batch: Callable[..., Batch]
    ) -> None:
        original = build(settings(), backbone)
        for group in original.groups:
            for parameter in group.parameters.values():
                parameter.data.normal_()
        prompt_of(original).trained_length.fill_(8)
        source = source_of(backbone, settings())._replace(tensors=trained_tensors(original.model, original.groups))
        built, _ = start(backbone, settings(), source, seed=4)
        batch = make_batch((5, 3), images=0, task="mnli")
        losses = [one.model.eval().loss(batch).loss for one in (original, built)]
        assert torch.equal(*losses)

    def test_prompt_a_leaves_b_at_zero(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings())
        built, notes = start(backbone, settings(), source, parts="prompt_a")
        prompt = prompt_of(built)
        assert torch.equal(prompt.prompt, source.tensors["prompt.prompt"])
        assert torch.equal(prompt.a, source.tensors["prompt.a"])
        assert not prompt.b.any()
        assert prompt.trained_length == 5
        assert notes == [f"Starting from {SOURCE} (dept trained on mnli): P, A"]

    def test_prompt_leaves_a_as_it_is_drawn(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings())
        fresh = prompt_of(build(settings(), backbone))
        prompt = prompt_of(start(backbone, settings(), source, parts="prompt")[0])
        assert torch.equal(prompt.prompt, source.tensors["prompt.prompt"])
        assert torch.equal(prompt.a, fresh.a)
        assert not prompt.b.any()
        assert prompt.trained_length == 0

    @pytest.mark.parametrize("method", ["adept", "dept_adept"])
    def test_all_is_adept_s_network_too(self, backbone: Backbone, method: str) -> None:
        chosen = settings(method, budget_length=20)
        source = source_of(backbone, chosen)
        built, notes = start(backbone, chosen, source)
        state = trained_tensors(built.model, built.groups)
        assert {"prompt.w1", "prompt.b1", "prompt.w2", "prompt.b2"} < set(state)
        assert all(torch.equal(state[name], value) for name, value in source.tensors.items())
        assert notes[0].endswith(": P, W1, b1, W2, b2" if method == "adept" else ": P, A, B, W1, b1, W2, b2")

    def test_plain_prompts_start_from_plain_prompts(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings("prompt"))
        built, _ = start(backbone, settings("prompt"), source)
        assert isinstance(built.model.encoder.prompt, SoftPrompt)
        assert torch.equal(built.model.encoder.prompt.prompt, source.tensors["prompt.prompt"])

    def test_p_alone_goes_from_one_method_to_another(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings())
        built, _ = start(backbone, settings("prompt", budget_length=4), source, parts="prompt")
        prompt = built.model.encoder.prompt
        assert isinstance(prompt, SoftPrompt)
        assert torch.equal(prompt.prompt, source.tensors["prompt.prompt"])

    def test_full_fine_tuning_goes_on_from_full_fine_tuning(
        self, backbone: Backbone, make_t5: Callable[..., T5ForConditionalGeneration]
    ) -> None:
        source = source_of(backbone, settings("full"))
        built, notes = start(backbone._replace(model=make_t5()), settings("full"), source)
        state = trained_tensors(built.model, built.groups)
        assert all(torch.equal(state[name], value) for name, value in source.tensors.items())
        assert notes[0].endswith(": backbone")

    def test_lora_goes_on_from_lora_of_the_same_rank_alone(
        self, backbone: Backbone, make_t5: Callable[..., T5ForConditionalGeneration]
    ) -> None:
        def fresh() -> Backbone:
            return backbone._replace(model=make_t5())

        source = source_of(fresh(), settings("lora", lora_rank=2))
        built, _ = start(fresh(), settings("lora", lora_rank=2), source)
        state = trained_tensors(built.model, built.groups)
        assert all(torch.equal(state[name], value) for name, value in source.tensors.items())
        message = refused(fresh(), settings("lora", lora_rank=1), source)
        assert "SelfAttention.q.lora_A.default.weight (1, 16) (2, 16)" in message
        assert message.endswith("make this run like it: method.* as in the source's adapter_config.json")
        assert "lora_A.default.weight" in refused(fresh(), settings("adapter", budget_length=100), source)

    @pytest.mark.parametrize("method", ["p_tuning", "mpt"])
    def test_prompts_of_more_parts_go_on_with_all_of_them(self, backbone: Backbone, method: str) -> None:
        source = source_of(backbone, settings(method))
        built, _ = start(backbone, settings(method), source)
        state = trained_tensors(built.model, built.groups)
        assert all(torch.equal(state[name], value) for name, value in source.tensors.items())
        length = {"p_tuning": "prompt_length", "mpt": "budget_length"}[method]
        assert "prompt." in refused(backbone, settings(method, **{length: 6}), source)


class TestSizes:
    def test_a_longer_a_is_cut(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings(max_text_length=16), trained_length=12)
        built, notes = start(backbone, settings(), source)
        assert torch.equal(prompt_of(built).a, source.tensors["prompt.a"][:8])
        assert prompt_of(built).trained_length == 8
        assert notes[1] == "A (prompt.a) has 16 rows in the source and is cut to 8"

    def test_a_shorter_a_is_continued_by_zeros_which_add_nothing_and_can_be_trained(
        self, backbone: Backbone, make_batch: Callable[..., Batch]
    ) -> None:
        source = source_of(backbone, settings(max_text_length=3), trained_length=3)
        built, notes = start(backbone, settings(), source)
        prompt = prompt_of(built)
        assert torch.equal(prompt.a[:3], source.tensors["prompt.a"])
        assert not prompt.a[3:].any()
        assert prompt.trained_length == 3
        assert notes[1] == "A (prompt.a) has 3 rows in the source and is continued by zeros to 8"
        built.model.train()(make_batch((6, 2), images=0, task="mnli")).loss.backward()
        assert prompt.a.grad is not None
        assert prompt.a.grad[3:6].any(dim=1).all()
        assert prompt.trained_length == 6

    @pytest.mark.parametrize(("images", "other", "change"), [(2, 3, "cut to 2"), (3, 2, "continued by zeros to 3")])
    def test_image_orders_are_cut_or_continued(self, backbone: Backbone, images: int, other: int, change: str) -> None:
        source = source_of(backbone, settings(images=other))
        built, notes = start(backbone, settings(images=images), source)
        visual = built.model.encoder.visual_embedding
        assert visual is not None
        rows = visual.image_order.weight
        both = min(images, other)
        assert torch.equal(rows[:both], source.tensors["visual_embedding.image_order.weight"][:both])
        assert not rows[both:].any()
        assert notes[1] == f"The embedding of image orders has {other} rows in the source and is {change}"

    @pytest.mark.parametrize(
        ("changes", "table", "remedy"),
        [
            ({"prompt_length": 5}, "prompt length (m) 5 4", "method.prompt_length=4"),
            ({"rank": 2}, "rank (r) 2 3", "method.rank=3"),
            ({"low_rank_scale": "official"}, "scale of A·B 4.6188 1.0", "method.low_rank_scale=paper"),
        ],
    )
    def test_other_sizes_are_refused_with_both_values_and_the_setting(
        self, backbone: Backbone, changes: dict[str, Any], table: str, remedy: str
    ) -> None:
        message = refused(backbone, settings(**changes), source_of(backbone, settings()))
        assert message == (
            f"This run cannot start from {SOURCE} (expected: this run; got: the source): field expected got {table} "
            f"Choose another source, or make this run like it: {remedy}"
        )

    def test_all_that_differs_is_named_at_once(self, backbone: Backbone) -> None:
        message = refused(backbone, settings(prompt_length=5, rank=2), source_of(backbone, settings()))
        assert "prompt length (m) 5 4 rank (r) 2 3" in message
        assert message.endswith("method.prompt_length=4, method.rank=3")

    def test_the_rank_of_adept_s_network_counts(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings("adept", budget_length=20))
        assert "rank (r) 2 3" in refused(backbone, settings("adept", budget_length=20, rank=2), source)

    def test_the_scale_is_of_no_account_where_b_starts_at_zero(self, backbone: Backbone) -> None:
        start(backbone, settings(low_rank_scale="official"), source_of(backbone, settings()), parts="prompt_a")

    def test_the_length_of_a_plain_prompt_is_the_budget(self, backbone: Backbone) -> None:
        message = refused(backbone, settings(), source_of(backbone, settings("prompt")), parts="prompt")
        assert "prompt length (m) 4 10" in message
        assert message.endswith("method.budget_length=10")


class TestWhatIsNotThere:
    def test_a_source_without_a_is_no_half_start(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings("prompt", budget_length=4))
        message = refused(backbone, settings(), source, parts="prompt_a")
        assert "trained parts P, A P Choose" in message
        assert message.endswith("method.name=prompt or method.init_parts=prompt")
        assert "trained parts P, A, B P Choose" in refused(backbone, settings(), source)

    def test_a_source_with_more_than_this_run_is_refused(self, backbone: Backbone) -> None:
        message = refused(backbone, settings("prompt", budget_length=4), source_of(backbone, settings()))
        assert "trained parts P P, A, B" in message
        assert message.endswith("method.name=dept or method.init_parts=prompt")

    @pytest.mark.parametrize("method", ["full", "visual_only"])
    def test_a_source_without_a_prompt_is_refused(self, backbone: Backbone, method: str) -> None:
        source = source_of(backbone, settings(method, images=1))
        assert "trained parts P none" in refused(backbone, settings(images=1), source, parts="prompt")

    @pytest.mark.parametrize(
        ("method", "parts", "missing"),
        [("prompt", "prompt_a", "A"), ("full", "prompt", "P"), ("full", "prompt_a", "P, A")],
    )
    def test_parts_that_this_run_has_not_are_refused(
        self, backbone: Backbone, method: str, parts: str, missing: str
    ) -> None:
        assert refused(backbone, settings(method), source_of(backbone, settings()), parts=parts) == (
            f"method.init_parts is {parts}, but what this run trains has no {missing}. Set method.init_parts=all, or "
            f"method.name=dept as in {SOURCE}"
        )

    def test_a_start_from_nothing_is_refused(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings("visual_only", images=1))
        text = settings("visual_only", head="classification")
        assert refused(backbone, text, source) == (
            f"Nothing of {SOURCE} can be taken over by this run. Choose another source or another method"
        )


class TestIdentity:
    @pytest.mark.parametrize("key", ["weight_digest", "tokenizer_digest"])
    @pytest.mark.parametrize("parts", ["prompt", "prompt_a", "all"])
    def test_another_backbone_or_tokenizer_is_refused(self, backbone: Backbone, key: str, parts: str) -> None:
        source = source_of(backbone, settings())
        changed = source._replace(identity=source.identity | {f"backbone.{key}": "f" * 64, "backbone.name": "other"})
        message = refused(backbone, settings(), changed, parts=parts)
        assert f"backbone.{key} {getattr(backbone, key)[:16]}… ffffffffffffffff…" in message
        assert message.endswith("--backbone other")

    def test_another_hidden_size_is_refused(
        self, backbone: Backbone, make_t5: Callable[..., T5ForConditionalGeneration]
    ) -> None:
        wide = backbone._replace(model=make_t5(d_model=32), weight_digest="e" * 64)
        assert "backbone.hidden_size 16 32" in refused(backbone, settings(), source_of(wide, settings()))

    def test_other_features_are_refused_where_the_visual_embedding_is_taken_over(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings(images=1))
        message = refused(backbone, settings(images=1), source, features={**FEATURES, "grid": 3, "crop": "none"})
        assert "features.grid 3 2 features.crop none -" in message
        assert message.endswith("a feature store extracted as the source's")

    def test_another_area_is_refused_where_the_visual_embedding_is_taken_over(self, backbone: Backbone) -> None:
        message = refused(backbone, settings(images=1), source_of(backbone, settings(images=1, area="vl_t5")))
        assert "visual.area true vl_t5" in message
        assert message.endswith("visual.area=vl_t5")

    @pytest.mark.parametrize("parts", ["prompt", "prompt_a"])
    def test_other_features_do_not_matter_for_a_prompt(self, backbone: Backbone, parts: str) -> None:
        source = source_of(backbone, settings(images=1))
        built, notes = start(backbone, settings(images=1), source, parts=parts, features={"grid": 9})
        fresh = build(settings(images=1), backbone).model.encoder.visual_embedding
        visual = built.model.encoder.visual_embedding
        assert visual is not None
        assert fresh is not None
        assert torch.equal(visual.feature_projection.weight, fresh.feature_projection.weight)
        assert notes[-1] == "The visual embedding starts fresh"

    def test_an_adapter_that_peft_saved_knows_neither_task_nor_tokenizer(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings())
        unknown = source._replace(
            identity=source.identity | {"task": None, "backbone.tokenizer_digest": None},
            settings={"method": source.settings["method"]},
        )
        _, notes = start(backbone, settings(), unknown)
        assert notes == [f"Starting from {SOURCE} (dept trained on an unnamed task): P, A, B"]


class TestWhatBelongsToATask:
    def test_the_visual_embedding_is_taken_over_where_both_have_one(self, backbone: Backbone) -> None:
        source = source_of(backbone, settings(images=1))
        built, notes = start(backbone, settings(images=1, task="vqa"), source)
        state = trained_tensors(built.model, built.groups)
        assert all(torch.equal(state[name], value) for name, value in source.tensors.items())
        assert notes == [f"Starting from {SOURCE} (dept trained on mnli): P, A, B, the visual embedding"]

    def test_a_source_on_text_leaves_it_fresh(self, backbone: Backbone) -> None:
        _, notes = start(backbone, settings(images=1), source_of(backbone, settings()))
        assert notes[-1] == "The visual embedding starts fresh"

    def test_a_source_with_images_serves_a_task_on_text(self, backbone: Backbone) -> None:
        _, notes = start(backbone, settings(), source_of(backbone, settings(images=1)))
        assert notes == [f"Starting from {SOURCE} (dept trained on mnli): P, A, B"]

    @pytest.mark.parametrize(
        ("task", "answers", "carried"),
        [("mnli", ANSWERS, True), ("cb", ANSWERS, False), ("mnli", ["no", "yes", "two"], False)],
        ids=["same", "another task", "other answers"],
    )
    def test_a_classification_head_is_of_one_task_and_its_answers(
        self, backbone: Backbone, task: str, answers: list[str], carried: bool
    ) -> None:
        source = source_of(backbone, settings(head="classification"))
        built, notes = start(backbone, settings(head="classification", task=task), source, answers=answers)
        state = trained_tensors(built.model, built.groups)
        weight = state[f"heads.{task}.layers.0.weight"]
        assert torch.equal(weight, source.tensors["heads.mnli.layers.0.weight"]) == carried
        if carried:
            assert notes == [f"Starting from {SOURCE} (dept trained on mnli): P, A, B, the classification head of mnli"]
        else:
            assert notes[-1] == f"The classification head of {task} starts fresh"

    def test_prompts_of_several_tasks(self, backbone: Backbone) -> None:
        two = replace(
            settings(prompt_sharing="per_task"),
            tasks={name: TaskSettings(name=name, max_text_length=8, images_per_example=0) for name in ("mnli", "sst2")},
        )
        source = source_of(backbone, two)
        # One prompt starts from that of the task that the path names.
        built, _ = start(backbone, settings(task="cb"), source, path=SOURCE / "sst2")
        assert torch.equal(prompt_of(built).prompt, source.tensors["prompt.sst2.prompt"])
        # Several start from those of the same tasks, or all from the only one.
        built, _ = start(backbone, two, source)
        prompts = built.model.encoder.prompt
        assert isinstance(prompts, TaskPrompts)
        for name in two.tasks:
            assert torch.equal(prompts.for_task(name).prompt, source.tensors[f"prompt.{name}.prompt"])
        only = source_of(backbone, settings())
        built, _ = start(backbone, two, only)
        prompts = built.model.encoder.prompt
        assert isinstance(prompts, TaskPrompts)
        for name in two.tasks:
            assert torch.equal(prompts.for_task(name).prompt, only.tensors["prompt.prompt"])
        # A difference says whose prompt it is of.
        assert "prompt length (m) of sst2 5 4" in refused(
            backbone, replace(two, method=replace(two.method, prompt_length=5)), only
        )
        with pytest.raises(UsageError, match=r"has the prompts prompt\.mnli, prompt\.sst2") as caught:
            start(backbone, settings(task="cb"), source)
        assert "last part of method.init_from, as in RUN/adapter/mnli" in str(caught.value)


class TestFinding:
    @pytest.fixture
    def adapter(self, backbone: Backbone) -> Adapter:
        return source_of(backbone, settings())

    def test_a_run_and_its_adapter_folder_name_the_same(self, adapter: Adapter, tmp_path: Path) -> None:
        save_adapter(tmp_path / "run" / "adapter", adapter)
        for path in ("run", "run/adapter"):
            assert find_adapter(tmp_path / path) == tmp_path / "run" / "adapter"

    def test_of_several_tasks_one_must_be_named(self, adapter: Adapter, tmp_path: Path) -> None:
        for task in ("vqa", "caption"):
            save_adapter(tmp_path / "run" / "adapter" / task, adapter)
        assert find_adapter(tmp_path / "run" / "adapter" / "vqa") == tmp_path / "run" / "adapter" / "vqa"
        for path in ("run", "run/adapter"):
            with pytest.raises(UsageError, match="an adapter for each of the tasks caption, vqa") as caught:
                find_adapter(tmp_path / path)
            assert f"method.init_from={tmp_path / 'run' / 'adapter' / 'caption'}" in str(caught.value)

    @pytest.mark.parametrize("name", ["missing", "."])
    def test_no_adapter(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputDataError, match=r"no trained adapter is\. Give the folder of a run that has finished"):
            find_adapter(tmp_path / name)
