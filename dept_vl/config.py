"""Settings from YAML layers and the command line.

The layers, each laid over the one before: base < backbone < features < method < task < recipe < data < command line.
The data layer is a file task.yaml in a data folder. In a layer, section ``task`` is about every task of the run, or
about the layer's own, and ``tasks.NAME`` about one. Unknown keys and wrong types are errors that name the layer, the
key and the nearest known one.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dept_vl.settings import KEYS, Settings, TaskSettings, nearest, wrong_values
from feature_extraction.errors import DamagedError, UsageError

GROUPS = ("backbone", "features", "method", "task", "recipe")  # folders of configs/, in merging order
DATA_LAYER = "task.yaml"  # in a data folder


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
    faults += wrong_values(settings)
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
