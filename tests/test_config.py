"""Settings: the order of the layers, what is refused, and how it is said."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass, replace
from pathlib import Path

import pytest

from dept_vl import config, settings
from dept_vl.config import layer_names, load_settings, settings_from_yaml, settings_to_yaml
from dept_vl.settings import BackboneSettings, MethodSettings, Settings, TaskSettings, TrainingSettings
from feature_extraction.errors import DamagedError, UsageError


def load(*overrides: str, **choices: str) -> Settings:
    return load_settings(dict(choices), overrides)


def refusal(*overrides: str, **choices: str) -> str:
    with pytest.raises(UsageError) as raised:
        load(*overrides, **choices)
    return str(raised.value)


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of layers of which each sets ``training.seed`` and one setting of its own."""
    (tmp_path / "base.yaml").write_text("training: {seed: 0, epochs: 1}\n")
    own = {
        "backbone": "backbone: {revision: b}",
        "features": "features: {image_size: 2}",
        "method": "method: {rank: 3}",
        "task": "task: {num_beams: 4}",
        "recipe": "data: {workers: 5}",
    }
    for number, (group, line) in enumerate(own.items(), start=1):
        (tmp_path / group).mkdir()
        (tmp_path / group / "x.yaml").write_text(f"training: {{seed: {number}}}\n{line}\n")
    monkeypatch.setattr(config, "configs_folder", lambda: tmp_path)
    return tmp_path


def test_each_layer_lies_over_the_one_before(layers: Path) -> None:
    order = ("backbone", "features", "method", "task", "recipe")
    assert order == config.GROUPS
    assert load().training.seed == 0
    for count in range(1, 6):
        # Given in reverse, since the order of the choices must not matter.
        chosen = dict.fromkeys(reversed(order[:count]), "x")
        assert load(**chosen).training.seed == count
    assert load("training.seed=6", **dict.fromkeys(order, "x")).training.seed == 6


def test_layers_leave_alone_what_they_do_not_name(layers: Path) -> None:
    settings = load(**dict.fromkeys(config.GROUPS, "x"))
    assert settings.backbone.revision == "b"
    assert settings.features.image_size == 2
    assert settings.method.rank == 3
    assert settings.task.num_beams == 4
    assert settings.data.workers == 5
    assert settings.training.epochs == 1


def test_a_group_may_be_chosen_among_the_overrides(layers: Path) -> None:
    assert load("method=x").method.rank == 3
    assert load("method=x", method="y").method.rank == 3  # the override wins


def test_base_yaml_states_the_defaults_of_the_sections() -> None:
    """What a layer does not set is the dataclass's own default, and base.yaml only repeats it, but for epochs."""
    assert load() == replace(Settings(), training=replace(TrainingSettings(), epochs=20))


def test_sections_are_frozen() -> None:
    for value in (Settings(), *settings.SECTIONS.values()):
        assert is_dataclass(value)
        assert value.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_a_backbone_or_features_name_without_a_file_is_a_model() -> None:
    assert load(backbone="google/flan-t5-small").backbone.name == "google/flan-t5-small"
    assert load(features="timm/resnet50").features.backbone == "timm/resnet50"
    assert load(backbone="t5-base").backbone.name == "google-t5/t5-base"


def test_unknown_layers_are_refused_with_the_nearest_and_all_names() -> None:
    assert refusal(method="dep") == (
        f"No method is called 'dep'. Did you mean 'dept'? There are: {', '.join(layer_names('method'))}"
    )
    assert (
        refusal(task="vqq")
        == f"No task is called 'vqq'. Did you mean 'vqa'? There are: {', '.join(layer_names('task'))}"
    )
    assert refusal(recipe="zzz") == f"No recipe is called 'zzz'. There are: {', '.join(layer_names('recipe'))}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.prompt_lenght=60", "unknown key 'method.prompt_lenght'. Did you mean 'method.prompt_length'?"),
        ("prompt_lenght=60", "unknown key 'prompt_lenght'. Did you mean 'method.prompt_length'?"),
        ("seed=3", "unknown key 'seed'. Did you mean 'training.seed'?"),
        ("training.prompt_lr=0.1", "unknown key 'training.prompt_lr'. Did you mean 'optimizer.prompt_lr'?"),
        ("trainin.seed=3", "unknown key 'trainin'. Did you mean 'training'?"),
        ("visual.x=3", "unknown key 'visual.x'. Known here: position_rule, area"),
        ("=3", "unknown key ''. Known here: backbone, features, method, visual, data, optimizer, training, task"),
        ("visual=3", "'visual' is a section with the keys position_rule, area, not a single value"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(override: str, message: str) -> None:
    assert refusal(override) == f"In the command line: {message}"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.seed=abc", "training.seed: Value 'abc' of type 'str' could not be converted to Integer"),
        ("training.seed=1.5", "training.seed: Value '1.5' of type 'str' could not be converted to Integer"),
        ("training.seed=", "training.seed: Value '' of type 'str' could not be converted to Integer"),
        ("optimizer.prompt_lr=big", "optimizer.prompt_lr: Value 'big' of type 'str' could not be converted to Float"),
        ("task.prefix=null", "task.prefix: field 'task.prefix' is not Optional"),
        ("task.splits=5", "task.splits: Cannot assign str to Dict[str, str]"),
        ("task.prefix={a: 1}", "task.prefix: Cannot convert 'dict' to string: '{'a': 1}'"),
    ],
)
def test_wrong_types_are_refused_with_layer_key_and_value(override: str, reason: str) -> None:
    assert refusal(override) == f"In the command line: {reason}. Its type is documented in configs/base.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "method.name=prompts",
            "method.name is 'prompts'. Did you mean 'prompt'? It is one of: dept, prompt, adept, dept_adept, "
            "dept_lora, p_tuning, mpt, prefix, lora, ia3, adapter, adapter_drop, lst, bitfit, ln_tuning, visual_only, "
            "full",
        ),
        (
            "method.placement=decoder",
            "method.placement is 'decoder'. Did you mean 'encoder'? It is one of: null, all, encoder",
        ),
        (
            "method.adapter_places=feedforward",
            "method.adapter_places is 'feedforward'. Did you mean 'feed_forward'? It is one of: null, all, "
            "feed_forward",
        ),
        ("method.prompt_init=x", "method.prompt_init is 'x'. It is one of: vocabulary, text, normal"),
        (
            "method.low_rank_init=papers",
            "method.low_rank_init is 'papers'. Did you mean 'paper'? It is one of: official, paper",
        ),
        ("method.low_rank_scale=1", "method.low_rank_scale is '1'. It is one of: official, paper"),
        (
            "visual.position_rule=vlt5",
            "visual.position_rule is 'vlt5'. Did you mean 'vl_t5'? It is one of: joint, vl_t5",
        ),
        ("visual.area=none", "visual.area is 'none'. It is one of: true, vl_t5"),
        ("training.precision=fp16", "training.precision is 'fp16'. Did you mean 'bf16'? It is one of: fp32, bf16"),
        (
            "training.tracker=wand",
            "training.tracker is 'wand'. Did you mean 'wandb'? It is one of: none, tensorboard, wandb, trackio",
        ),
    ],
)
def test_values_out_of_a_choice_are_refused_with_all_of_it(override: str, message: str) -> None:
    assert refusal(override) == message


@pytest.mark.parametrize("key", [key for key, least in settings.AT_LEAST.items() if key not in settings.AT_MOST])
def test_numbers_below_their_limit_are_refused(key: str) -> None:
    section, name = key.split(".")
    least = settings.AT_LEAST[key]
    below = least - 1 if isinstance(least, int) else least / 2
    changed = {"training.steps": ["training.epochs=null"]}.get(key, [])
    message = refusal(f"{key}={below}", *changed)
    kind = type(getattr(getattr(Settings(), section), name))
    assert (
        f"{key} is {float(below) if kind is float else below}; it must be at least {least}" in message.split("; In")[0]
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.dropout=1.5", "backbone.dropout is 1.5; it must be 0 to 1"),
        ("optimizer.warmup_fraction=-0.1", "optimizer.warmup_fraction is -0.1; it must be 0 to 1"),
        ("optimizer.beta1=1", "optimizer.beta1 is 1.0; it must be 0 to 0.999999"),
        ("optimizer.beta2=-1", "optimizer.beta2 is -1.0; it must be 0 to 0.999999"),
        ("training.epochs=0", "training.epochs is 0.0; it must be 0.001 to 1000000.0"),
        ("training.epochs=inf", "training.epochs is inf; it must be 0.001 to 1000000.0"),
        ("optimizer.prompt_lr=nan", "optimizer.prompt_lr is nan; it must be at least 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(override: str, message: str) -> None:
    assert refusal(override) == message


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (("training.steps=600",), "training.steps is 600 and training.epochs is 20.0"),
        (("training.epochs=null",), "training.steps is None and training.epochs is None"),
    ],
)
def test_exactly_one_of_steps_and_epochs_is_given(overrides: tuple[str, ...], found: str) -> None:
    assert refusal(*overrides) == f"{found}; set exactly one, as in training.steps=600 training.epochs=null"


def test_impossible_pairs_are_refused() -> None:
    assert refusal("method.prompt_length=101") == (
        "method.prompt_length (m) is 101 but method.budget_length (l) is 100; dept needs m <= l: lower m or raise l"
    )
    assert load("method.prompt_length=101", method="prompt").method.prompt_length == 101  # which has no m
    assert refusal("method.prompt_init=text") == (
        "method.prompt_init is 'text' but method.prompt_text is empty; give the text to start from"
    )


def test_all_faults_of_all_layers_are_told_at_once(layers: Path) -> None:
    (layers / "task" / "x.yaml").write_text("task: {num_beam: 4}\n")
    message = refusal("training.seeds=1", "data.workers=x", "data.batch_size=0", "training.precision=fp16", task="x")
    assert message.split("; ") == [
        "In configs/task/x.yaml: unknown key 'task.num_beam'. Did you mean 'task.num_beams'?",
        "In the command line: unknown key 'training.seeds'. Did you mean 'training.seed'?",
        "In the command line: data.workers: Value 'x' of type 'str' could not be converted to Integer. "
        "Its type is documented in configs/base.yaml",
        "training.precision is 'fp16'. Did you mean 'bf16'? It is one of: fp32, bf16",
        "data.batch_size is 0",
        "it must be at least 1",
    ]


@pytest.mark.parametrize("override", ["data.batch_size", "--backbone", ""])
def test_an_override_without_an_equals_sign_is_refused(override: str, tmp_path: Path) -> None:
    message = f"{override!r} on the command line is no setting: write key=value, as in data.batch_size=64"
    assert refusal(override) == message
    (tmp_path / "config.yaml").write_text(settings_to_yaml(load()))
    with pytest.raises(UsageError) as raised:
        settings_from_yaml(tmp_path / "config.yaml", [override])
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "text", ["vqa: ", "vqa:", " ", "", "yes", "#1", "[x", "{x", "a=b", "'quoted'", "*x", "5", "naïve"]
)
def test_texts_are_taken_as_they_are_typed(text: str) -> None:
    assert load(f"task.prefix={text}").task.prefix == text


def test_numbers_nulls_and_collections_are_read_by_the_type_of_their_setting() -> None:
    settings = load(
        "optimizer.prompt_lr=1e-3",
        "training.steps=600",
        "training.epochs=null",
        "visual.area=true",
        "task.splits={train: a}",
        "task.splits.test=b",
    )
    assert settings.optimizer.prompt_lr == 0.001
    assert settings.training.steps == 600
    assert settings.training.epochs is None
    assert settings.visual.area == "true"
    assert settings.task.splits == {"train": "a", "test": "b"}


def test_splits_are_laid_over_one_by_one() -> None:
    splits = load("task.splits.test=test-dev2015", task="vqa").task.splits
    assert splits["train"] == "train2014"
    assert splits["test"] == "test-dev2015"


def test_the_later_of_two_overrides_counts() -> None:
    assert load("training.seed=1", "training.seed=2").training.seed == 2


def test_settings_do_not_refer_to_others() -> None:
    assert refusal("task.prefix=${task.name}") == (
        "In the command line: task.prefix is '${task.name}'; settings are not put together from others"
    )


def test_settings_come_back_from_their_yaml(tmp_path: Path) -> None:
    settings = Settings(
        backbone=BackboneSettings(name="no", revision=None, dropout=0.1),
        method=MethodSettings(rank=3, prompt_text="null"),
        tasks={"vqa": TaskSettings(prefix="vqa: ", splits={"train": "1", "test": "on"})},
        training=TrainingSettings(steps=5, patience=None, precision="bf16"),
    )
    path = tmp_path / "config.yaml"
    path.write_text(settings_to_yaml(settings))
    assert settings_from_yaml(path) == settings
    assert settings_to_yaml(settings_from_yaml(path)) == settings_to_yaml(settings)


def test_yaml_keeps_the_order_of_the_sections() -> None:
    lines = settings_to_yaml(load()).splitlines()
    assert [line.rstrip(":") for line in lines if not line.startswith(" ")] == list(asdict(Settings()))


def test_overrides_lie_over_the_yaml_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(settings_to_yaml(load()))
    assert settings_from_yaml(path, ["task.num_beams=5"]).task.num_beams == 5
    with pytest.raises(UsageError, match=r"^In the command line: unknown key 'task\.beams'\. "):
        settings_from_yaml(path, ["task.beams=5"])


def test_a_key_that_this_version_does_not_know_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(settings_to_yaml(load()) + "future:\n  setting: 1\n")
    with pytest.raises(UsageError) as raised:
        settings_from_yaml(path)
    assert str(raised.value).startswith(f"In {path}: unknown key 'future'. ")


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        settings_from_yaml(tmp_path / "config.yaml")
    assert str(raised.value) == (
        f"No settings file {tmp_path / 'config.yaml'}. Give the folder of a run, or install the package again"
    )


@pytest.mark.parametrize("content", [b"training: [", b"\xff\xfe\x00", b"a: b: c"])
def test_a_file_that_is_no_yaml_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(DamagedError) as raised:
        settings_from_yaml(path)
    assert str(raised.value).startswith(f"{path} is not YAML: ")
    assert str(raised.value).endswith(". Take it again from a copy")
    assert "\n" not in str(raised.value)


def test_layers_are_found_in_an_installed_package_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "__file__", str(tmp_path / "site" / "dept_vl" / "config.py"))
    assert config.configs_folder() == tmp_path / "site" / "configs"
    (tmp_path / "site" / "dept_vl" / "configs").mkdir(parents=True)
    assert config.configs_folder() == tmp_path / "site" / "dept_vl" / "configs"
