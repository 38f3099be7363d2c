"""Settings: typed sections, filled from YAML layers and then from the command line.

The layers, each laid over the one before: base < backbone < features < method < task < recipe < data < command line.
The data layer is a file task.yaml in a data folder. In a layer, section ``task`` is about every task of the run, or
about the layer's own, and ``tasks.NAME`` about one. Unknown keys and wrong types are errors that name the layer, the
key and the nearest known one.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from feature_extraction.errors import DamagedError, UsageError
from feature_extraction.settings import ExtractionSettings

GROUPS = ("backbone", "features", "method", "task", "recipe")  # folders of configs/, in merging order
DATA_LAYER = "task.yaml"  # in a data folder


@dataclass(frozen=True)
class BackboneSettings:
    """The frozen text model: T5 v1.0, v1.1 or Flan."""

    name: str = "t5-mini"  # "t5-mini" (embedded), a Hugging Face id, or a local folder
    revision: str | None = None  # of a Hugging Face id; null: its main branch
    dropout: float | None = None  # in the frozen layers during training, 0 to 1; null: the model's own


@dataclass(frozen=True)
class MethodSettings:
    """What is trained."""

    name: str = "dept"  # dept, prompt, visual_only or full
    budget_length: int = 100  # l: the prompt length whose parameters, l * H, may be spent; prompt tuning uses it whole
    prompt_length: int = 40  # m: length of DePT's short prompt
    rank: int | None = None  # r; null: the largest that the budget allows
    prompt_init: str = "vocabulary"  # vocabulary (sampled embeddings), text, or normal
    prompt_text: str | None = None  # for prompt_init: text; repeated and cut to the prompt length
    low_rank_init: str = "official"  # of A: official (uniform within 1/sqrt(r)) or paper (standard normal)
    low_rank_scale: str = "paper"  # of A·B: paper (1) or official (8/sqrt(r))
    prompt_sharing: str = "shared"  # among several tasks: shared, or per_task (each its own prompt, A and B)


@dataclass(frozen=True)
class VisualSettings:
    """How visual tokens enter the encoder."""

    position_rule: str = "joint"  # relative bias: joint (true positions) or vl_t5 (zero with visual tokens)
    area: str = "true"  # fifth box number: true, or vl_t5 (the published models' formula)


@dataclass(frozen=True)
class TaskSettings:
    """One task. ``max_text_length`` is DePT's s: texts are cut to it, and A has a row for each position."""

    name: str = "vqa"
    module: str = "vqa"  # in dept_vl.tasks
    prefix: str = ""  # put before every text
    vl_adapter_prefix: str | None = None  # where VL-Adapter's published runs have another; null: the same
    prefix_style: str = "vl_t5"  # vl_t5 (``prefix``), vl_adapter (its own), or none
    max_text_length: int = 20  # s, tokens
    max_target_length: int = 10  # L, tokens
    images_per_example: int = 1  # I
    head: str = "generation"  # generation, classification, or first_step (the labels' first tokens compared)
    constrained: bool = False  # generation gives only answers of the vocabulary
    answer_count: int | None = None  # A: so many of the most frequent training answers; null: all
    answer_file: str | None = None  # in the data folder, a JSON list of answers instead (LXMERT's label2ans)
    passes_per_epoch: int = 1  # over the examples; each pass draws one target of each
    loss: str = "example"  # example (mean over an example's tokens, then over examples) or token (over all tokens)
    num_beams: int = 1  # 1: greedy
    batch_size: int | None = None  # of this task's steps; null: data.batch_size
    selection_metric: str = "accuracy"  # the best checkpoint has the highest
    splits: dict[str, str] = field(default_factory=dict)  # our split name: the name in the data set's file names


@dataclass(frozen=True)
class DataSettings:
    """Batching."""

    batch_size: int = 32  # examples an optimizer step sees, over all processes
    evaluation_batch_size: int = 256  # examples a process generates for at once
    bucket_width: int = 8  # tokens; texts of a batch differ in length by less than this
    workers: int = 0  # loader processes for each training process


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW: a learning rate and a weight decay for each group of parameters."""

    prompt_lr: float = 0.3  # P
    low_rank_lr: float = 1e-3  # A and B
    visual_lr: float = 1e-3  # visual embedding
    head_lr: float = 1e-3  # classification head
    backbone_lr: float = 1e-4  # T5, for method full
    prompt_weight_decay: float = 1e-5
    low_rank_weight_decay: float = 1e-5
    visual_weight_decay: float = 0.01
    head_weight_decay: float = 0.01
    backbone_weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    clip_norm: float = 1.0  # of all gradients together
    warmup_fraction: float = 0.1  # of all optimizer steps, 0 to 1; then linear decay to 0


@dataclass(frozen=True)
class TrainingSettings:
    """The loop. Give steps or epochs, not both."""

    steps: int | None = None  # optimizer steps
    epochs: float | None = None  # passes over the training examples
    evaluate_every: int = 1000  # steps between validations; the best is kept
    checkpoint_every: int = 1000  # steps between checkpoints; the two newest are kept
    log_every: int = 10  # steps that one line of the loss log averages over
    patience: int | None = None  # validations without a better score before stopping; null: never
    validation_examples: int | None = None  # a fixed random choice of so many; null: all
    mixing_temperature: float = 1.0  # of several tasks: shares go with size^(1/temperature); large: equal shares
    precision: str = "fp32"  # fp32 or bf16
    seed: int = 0
    tracker: str = "none"  # none, tensorboard, wandb or trackio; the local log.jsonl is always written


@dataclass(frozen=True)
class Settings:
    """Everything that defines a run, of one task or of several that are trained together."""

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    features: ExtractionSettings = field(default_factory=ExtractionSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    tasks: dict[str, TaskSettings] = field(default_factory=lambda: {"vqa": TaskSettings()})
    visual: VisualSettings = field(default_factory=VisualSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    @property
    def task(self) -> TaskSettings:
        """The task of a run of one, or of ``of``.

        Raises:
            UsageError: there are several.
        """
        if len(self.tasks) > 1:
            raise UsageError(f"One task is needed here, but {', '.join(self.tasks)} are named. Name one of them")
        return next(iter(self.tasks.values()))

    def of(self, task: str) -> Settings:
        """The settings as one of the tasks sees them."""
        return replace(self, tasks={task: self.tasks[task]})


SECTIONS = {name: value for name, value in vars(Settings()).items() if name != "tasks"} | {"task": TaskSettings()}
KEYS = {name: [key.name for key in fields(section)] for name, section in SECTIONS.items()}

CHOICES = {
    "method.name": ("dept", "prompt", "visual_only", "full"),
    "method.prompt_init": ("vocabulary", "text", "normal"),
    "method.low_rank_init": ("official", "paper"),
    "method.low_rank_scale": ("official", "paper"),
    "method.prompt_sharing": ("shared", "per_task"),
    "visual.position_rule": ("joint", "vl_t5"),
    "visual.area": ("true", "vl_t5"),
    "task.prefix_style": ("vl_t5", "vl_adapter", "none"),
    "task.head": ("generation", "classification", "first_step"),
    "task.loss": ("example", "token"),
    "training.precision": ("fp32", "bf16"),
    "training.tracker": ("none", "tensorboard", "wandb", "trackio"),
}

AT_LEAST = {
    **dict.fromkeys(("method.budget_length", "task.max_text_length", "task.num_beams"), 1),
    **dict.fromkeys(("task.batch_size", "task.passes_per_epoch"), 1),
    **dict.fromkeys(("method.prompt_length", "method.rank", "task.images_per_example"), 0),
    "task.answer_count": 2,
    "task.max_target_length": 2,  # a token and </s>
    **dict.fromkeys(("data.batch_size", "data.evaluation_batch_size", "data.bucket_width"), 1),
    **dict.fromkeys(("data.workers", "backbone.dropout"), 0),
    **{f"optimizer.{name}": 0 for name in KEYS["optimizer"]},
    "optimizer.clip_norm": 1e-6,
    **dict.fromkeys(("training.steps", "training.patience", "training.validation_examples"), 1),
    **dict.fromkeys(("training.evaluate_every", "training.checkpoint_every", "training.log_every"), 1),
    "training.epochs": 0.001,
    "training.mixing_temperature": 0.01,
    "training.seed": 0,
}

AT_MOST = {
    **dict.fromkeys(("backbone.dropout", "optimizer.warmup_fraction"), 1),
    **dict.fromkeys(("optimizer.beta1", "optimizer.beta2"), 0.999999),
    "training.epochs": 1e6,
}


def configs_folder() -> Path:
    """Where the YAML layers lie: inside the installed package, or in the checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def layer_names(group: str) -> list[str]:
    """The YAML files of one group, by name."""
    return sorted(path.stem for path in (configs_folder() / group).glob("*.yaml"))


def load_settings(
    choices: dict[str, str | None], overrides: Sequence[str], *, data: Mapping[str, Path] | None = None
) -> Settings:
    """Merge all layers and check the result.

    Args:
        choices: for each of GROUPS the chosen name, or several in their order, as in "vqa,caption". A backbone or
            features name without a YAML file is taken as the name of a model.
        overrides: ``section.key=value``, or ``group=name``, which chooses like ``choices``.
        data: for each task its data folder, whose task.yaml is a layer.

    Raises:
        UsageError: an unknown layer, key, type or value; all faults are named together.
    """
    choices = dict(choices)
    assignments = []
    for key, value in _pairs(overrides):
        if key in GROUPS:
            choices[key] = value
        else:
            assignments.append((key, value))
    tasks = _names(choices.get("task"))
    twice = [name for name, count in Counter(tasks).items() if count > 1]
    if twice:
        raise UsageError(f"--task names {twice[0]!r} twice. Name each task once, as in --task vqa,caption")
    return _merged([*_layers(choices, data or {}), _command_line(assignments)], tasks or ["vqa"])


def settings_to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML, in the order of the sections."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings))


def settings_from_yaml(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read back what ``settings_to_yaml`` wrote, with ``section.key=value`` laid over it.

    Raises:
        UsageError: a key or value that this version does not know.
    """
    saved = _read(path)
    return _merged([_Layer(str(path), saved), _command_line(_pairs(overrides))], list(saved.get("tasks") or ["vqa"]))


class _Layer(NamedTuple):
    """Settings from one place."""

    name: str
    values: DictConfig
    task: str | None = None  # the only one that its section ``task`` is about
    serves_others: bool = False  # names of tasks that this run does not have are in order


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    for override in overrides:
        if "=" not in override:
            raise UsageError(
                f"{override!r} on the command line is no setting: write key=value, as in data.batch_size=64"
            )
    return [(key, value) for key, _, value in (override.partition("=") for override in overrides)]


def _command_line(assignments: Sequence[tuple[str, str]]) -> _Layer:
    layer = OmegaConf.create()
    for key, value in assignments:
        OmegaConf.update(layer, key, _parsed(value), force_add=True)
    return _Layer("the command line", layer)


def _parsed(value: str) -> Any:  # noqa: ANN401 - whatever YAML says
    """Null and collections as in YAML; any other text is left to the type of its setting."""
    if value == "null":
        return None
    if value.startswith(("{", "[")):
        try:
            return OmegaConf.create(value)
        except YAMLError:
            return value
    return value


def _names(choice: str | None) -> list[str]:
    """What a choice names: nothing, one layer, or several joined by commas."""
    return [name.strip() for name in choice.split(",")] if choice else []


def _layers(choices: dict[str, str | None], data: Mapping[str, Path]) -> Iterator[_Layer]:
    folder = configs_folder()
    yield _Layer("configs/base.yaml", _read(folder / "base.yaml"))
    for group in GROUPS:
        for name in _names(choices.get(group)):
            path = folder / group / f"{name}.yaml"
            if path.is_file():
                own = name if group == "task" else None
                yield _Layer(f"configs/{group}/{name}.yaml", _read(path), own, serves_others=group == "recipe")
            elif group == "backbone":
                yield _Layer(f"--backbone {name}", OmegaConf.create({"backbone": {"name": name}}))
            elif group == "features":
                yield _Layer(f"--features {name}", OmegaConf.create({"features": {"backbone": name}}))
            else:
                known = layer_names(group)
                raise UsageError(f"No {group} is called {name!r}.{nearest(name, known)} There are: {', '.join(known)}")
    for task, data_folder in data.items():
        if (data_folder / DATA_LAYER).is_file():
            yield _Layer(str(data_folder / DATA_LAYER), _read(data_folder / DATA_LAYER), task)


def _read(path: Path) -> DictConfig:
    try:
        return cast(DictConfig, OmegaConf.load(path))
    except FileNotFoundError:
        raise UsageError(f"No settings file {path}. Give the folder of a run, or install the package again") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is not YAML: {' '.join(str(error).split())}. Take it again from a copy") from error


def _merged(layers: Iterable[_Layer], tasks: Sequence[str]) -> Settings:
    """The layers one over the other, checked.

    Raises:
        UsageError: names every unknown key, wrong type and wrong value of all layers.
    """
    merged = OmegaConf.structured(Settings(tasks={name: TaskSettings() for name in tasks}))
    for section in [merged[name] for name in merged if name != "tasks"] + [merged.tasks[name] for name in tasks]:
        OmegaConf.set_readonly(section, False)  # as a frozen dataclass it is
    faults = [f"In {layer.name}: {fault}" for layer in layers for fault in _lay_over(merged, layer)]
    settings = cast(Settings, OmegaConf.to_object(merged))
    faults += _wrong_values(settings)
    if faults:
        raise UsageError("; ".join(faults))
    return settings


def _lay_over(merged: DictConfig, layer: _Layer) -> Iterator[str]:
    """Put a layer's settings into ``merged``, and give back what is wrong with those that do not fit."""
    for section, values in cast(dict[Any, Any], OmegaConf.to_container(layer.values)).items():
        if section not in (*KEYS, "tasks"):
            yield f"unknown key {section!r}.{_suggestion(str(section), list(KEYS))}"
        elif not isinstance(values, dict):
            known = KEYS.get(section, merged.tasks)
            yield f"{section!r} is a section with the keys {', '.join(known)}, not a single value"
        elif section == "task":
            for task in [layer.task] if layer.task else merged.tasks:
                yield from _lay_section(merged, layer, f"tasks.{task}", "task", "task")
        elif section == "tasks":
            for task in values:
                if task in merged.tasks:
                    yield from _lay_section(merged, layer, f"tasks.{task}", f"tasks.{task}", "task")
                elif not (layer.serves_others and task in layer_names("task")):
                    yield f"'tasks' is about {task!r}, but the run has {', '.join(merged.tasks)}"
        else:
            yield from _lay_section(merged, layer, section, section, section)


def _lay_section(merged: DictConfig, layer: _Layer, into: str, section: str, kind: str) -> Iterator[str]:
    """Put one section of a layer into the section ``into`` of ``merged``; ``kind`` says what keys it has."""
    values = OmegaConf.select(layer.values, section)
    if not isinstance(values, DictConfig):
        yield f"{section!r} is a section with the keys {', '.join(KEYS[kind])}, not a single value"
        return
    for key, value in cast(dict[Any, Any], OmegaConf.to_container(values)).items():
        name = f"{section}.{key}"
        if key not in KEYS[kind]:
            yield f"unknown key {name!r}.{_suggestion(str(key), KEYS[kind], section)}"
        elif OmegaConf.is_interpolation(values, key):
            yield f"{name} is {value!r}; settings are not put together from others"
        else:
            try:
                OmegaConf.update(merged, f"{into}.{key}", value)
            except OmegaConfBaseException as error:
                reason = str(error.msg or error).splitlines()[0].replace(f"{into}.", f"{section}.")
                yield f"{name}: {reason}. Its type is documented in configs/base.yaml"


def _suggestion(key: str, here: Sequence[str], section: str = "") -> str:
    """A sentence with the known key that was meant, here or in another section, or with all that there are here."""
    full = {name: f"{home}.{name}" for home, names in KEYS.items() for name in names}
    full |= {name: f"{section}.{name}" if section else name for name in here}
    names = (
        [key] if key in full else difflib.get_close_matches(key, here, n=1) or difflib.get_close_matches(key, full, n=1)
    )
    return f" Did you mean {full[names[0]]!r}?" if names else f" Known here: {', '.join(here)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that asks whether the most similar known name was meant, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _wrong_values(settings: Settings) -> Iterator[str]:
    for key, allowed in CHOICES.items():
        for name, value in _look_up(settings, key):
            if value not in allowed:
                yield f"{name} is {value!r}.{nearest(str(value), allowed)} It is one of: {', '.join(allowed)}"
    for key in {**AT_LEAST, **AT_MOST}:
        least, most = AT_LEAST.get(key, -math.inf), AT_MOST.get(key, math.inf)
        for name, value in _look_up(settings, key):
            if value is not None and not least <= value <= most:  # NaN is refused too
                limits = f"at least {least}" if most == math.inf else f"{least} to {most}"
                yield f"{name} is {value}; it must be {limits}"
    training, method = settings.training, settings.method
    if (training.steps is None) == (training.epochs is None):
        yield (
            f"training.steps is {training.steps} and training.epochs is {training.epochs}; set exactly one, "
            "as in training.steps=600 training.epochs=null"
        )
    if method.name == "dept" and method.prompt_length > method.budget_length:
        yield (
            f"method.prompt_length (m) is {method.prompt_length} but method.budget_length (l) is "
            f"{method.budget_length}; DePT needs m <= l: lower m or raise l"
        )
    if method.prompt_init == "text" and not method.prompt_text:
        yield "method.prompt_init is 'text' but method.prompt_text is empty; give the text to start from"


def _look_up(settings: Settings, key: str) -> Iterator[tuple[str, Any]]:
    """A setting's full name and its value, for each task where it is a task's."""
    section, name = key.split(".")
    if section != "task":
        yield key, getattr(getattr(settings, section), name)
    else:
        for task, values in settings.tasks.items():
            yield key if len(settings.tasks) == 1 else f"tasks.{task}.{name}", getattr(values, name)
