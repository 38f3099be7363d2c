"""Every YAML file of configs/ builds settings, alone and with each method, and settings build a model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from omegaconf import DictConfig, OmegaConf

from dept_vl.config import GROUPS, configs_folder, layer_names, load_settings, settings_from_yaml, settings_to_yaml
from dept_vl.model.backbone import Backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.settings import METHODS as CHOSEN
from dept_vl.settings import Settings
from dept_vl.tasks.task import load_task
from feature_extraction.errors import UsageError

LAYERS = [(group, name) for group in GROUPS for name in layer_names(group)]
METHODS = layer_names("method")
PICTURED = [name for name in layer_names("task") if load_settings({"task": name}, []).task.images_per_example]


def build(settings: Settings, backbone: Backbone) -> BuiltModel:
    answers = {name: load_task(task).labels or ("yes", "no") for name, task in settings.tasks.items()}
    return build_model(settings, backbone, visual_tokens=4, feature_width=6, seed=0, answers=answers)


def test_every_yaml_file_is_a_layer() -> None:
    found = {path.relative_to(configs_folder()).as_posix() for path in configs_folder().rglob("*.yaml")}
    assert found == {"base.yaml", *(f"{group}/{name}.yaml" for group, name in LAYERS)}


def test_there_are_layers_of_every_group() -> None:
    assert {group for group, _ in LAYERS} == set(GROUPS)
    assert sorted(METHODS) == sorted(CHOSEN)


@cache
def settings_of(task: str) -> Settings:
    return load_settings({"task": task}, [])


@pytest.mark.parametrize(("group", "name"), LAYERS)
@pytest.mark.parametrize("method", ["dept", "lora", "full"])
def test_every_layer_builds_settings_with_methods(group: str, name: str, method: str) -> None:
    settings = load_settings({"method": method} | {group: name}, [])
    assert isinstance(settings, Settings)
    assert settings.method.name == (name if group == "method" else method)


@pytest.mark.parametrize(("task", "method"), list(product(layer_names("task"), METHODS)))
def test_every_task_builds_a_model_with_every_method(backbone: Backbone, task: str, method: str) -> None:
    settings = settings_of(task)
    settings = replace(settings, method=replace(settings.method, name=method))
    assert load_task(settings.task).name == settings.task.name
    if method == "visual_only" and task not in PICTURED:
        with pytest.raises(UsageError) as raised:
            build(settings, backbone)
        assert str(raised.value) == (
            f"method visual_only trains nothing on {task}, which has no images. Choose another --method, such as dept"
        )
        return
    if method == "bitfit":  # tests/model/methods/test_own_parameters.py has models with biases
        with pytest.raises(UsageError, match="BitFit trains biases"):
            build(settings, backbone)
        return
    built = build(settings, backbone)
    assert built.trainable.own + built.trainable.visual > 0


@pytest.mark.parametrize(("recipe", "method"), list(product(layer_names("recipe"), ["dept", "prompt", "lora"])))
def test_every_recipe_builds_a_model_with_methods(backbone: Backbone, recipe: str, method: str) -> None:
    layer = OmegaConf.load(configs_folder() / "recipe" / f"{recipe}.yaml")
    assert isinstance(layer, DictConfig)
    tasks = list(
        map(str, layer.get("tasks") or [recipe.removeprefix("dept_") if recipe.startswith("dept_") else "vqa"])
    )
    choices = {"task": ",".join(tasks), "recipe": recipe, "method": method}
    build(load_settings(choices, ["method.rank=null"]), backbone)


@pytest.mark.parametrize(("group", "name"), LAYERS)
def test_resolved_settings_come_back_from_a_run_s_folder(
    group: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = load_settings({group: name}, [])
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(settings_to_yaml(settings))
    assert settings_from_yaml(path) == settings


def test_the_recipe_of_the_demo_spends_equal_budgets_on_dept_and_prompt_tuning() -> None:
    dept, prompt = (
        load_settings({"task": "vqa", "recipe": "easy_vqa", "method": name}, []) for name in ("dept", "prompt")
    )
    assert replace(prompt, method=replace(prompt.method, name="dept")) == dept
    assert dept.method.rank is not None
    spent = dept.method.prompt_length * 256 + (dept.task.max_text_length + 256) * dept.method.rank
    assert 0.99 * prompt.method.budget_length * 256 <= spent <= prompt.method.budget_length * 256
