"""What a sweep consists of: settings that a user multiplies, and the ordinary run of each cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from dept_vl.config import GROUPS, load_settings
from dept_vl.settings import KEYS, Settings, nearest
from feature_extraction.errors import UsageError

BEYOND_BUDGET = ("full", "visual_only")  # methods to which a budget does not apply: what others are measured by
# Settings that options of the command give, or that the feature store does.
SET_HERE = {
    **dict.fromkeys(("method", "method.name"), "--methods"),
    **dict.fromkeys(("task", "task.name"), "--tasks"),
    **dict.fromkeys(("backbone", "backbone.name"), "--backbones"),
    "training.seed": "--seeds",
}


class Override(NamedTuple):
    """A setting with the values that it takes in turn, in the cells that have all the names of its scope."""

    key: str
    values: tuple[str, ...]
    scope: tuple[str, ...] = ()  # of methods, tasks and backbones; empty: every cell

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        return ":".join([*self.scope, f"{self.key}={','.join(self.values)}"])


class Setup(NamedTuple):
    """What a row of the tables stands for: cells that differ in nothing but the seed."""

    backbone: str
    task: str
    method: str
    overrides: tuple[tuple[str, str], ...] = ()  # key and value, in their order
    varied: tuple[tuple[str, str], ...] = ()  # those of them that the sweep multiplies, by short names

    @property
    def label(self) -> str:
        """The method and what is varied, as a person reads it."""
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.varied)])

    @property
    def folder(self) -> Path:
        """Where what belongs to it lies, inside any folder."""
        return Path(backbone_label(self.backbone), self.task, self.method, _file_name(self.varied))

    def with_settings(self, chosen: Mapping[str, str]) -> Setup:
        """The same with further settings, which a search has chosen."""
        return self._replace(overrides=tuple((dict(self.overrides) | dict(chosen)).items()))


class Cell(NamedTuple):
    """One run."""

    setup: Setup
    seed: int

    @property
    def folder(self) -> Path:
        """Where it lies, inside the folder of all runs."""
        setup = self.setup
        name = "-".join([*filter(None, [_file_name(setup.varied)]), f"seed{self.seed}"])
        return Path(backbone_label(setup.backbone), setup.task, setup.method, name)


@dataclass(frozen=True)
class Grid:
    """All cells of a sweep, by what they are made of."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    data: Mapping[str, Path]  # of each task
    seeds: tuple[int, ...] = (0,)
    backbones: tuple[str, ...] = ("t5-mini",)
    features: Mapping[str, Path] = field(default_factory=dict)  # of each task with images
    overrides: tuple[Override, ...] = ()
    budget: int | None = None  # parameters of each method's own; None: as the settings say


def setups(grid: Grid) -> list[Setup]:
    """All rows, in the order of backbones, tasks, methods and values.

    Raises:
        UsageError: two would lie in one folder.
    """
    found = [
        one
        for combination in product(grid.backbones, grid.tasks, grid.methods)
        for one in _setups_of(grid, *combination)
    ]
    twice = [folder for folder, count in Counter(one.folder for one in found).items() if count > 1]
    if twice:
        raise UsageError(
            f"Two rows of the sweep would lie in {twice[0]}: their backbones or values differ only in signs that a "
            "file name does not have. Sweep over one of them in another --output"
        )
    return found


def cells(grid: Grid, rows: Sequence[Setup] | None = None) -> list[Cell]:
    """All runs: every row (all of the grid if None) with the first seed, then with the second, and so on."""
    return [Cell(setup, seed) for seed, setup in product(grid.seeds, setups(grid) if rows is None else rows)]


def settings_of(grid: Grid, cell: Cell) -> Settings:
    """What the run of a cell has for settings.

    Raises:
        UsageError: a setting is not in order.
    """
    settings = _row_settings(cell.setup, grid.data[cell.setup.task])
    return replace(settings, training=replace(settings.training, seed=cell.seed))


@cache  # asked for again and again, and of some milliseconds each
def _row_settings(setup: Setup, data: Path) -> Settings:
    choices: dict[str, str | None] = {"backbone": setup.backbone, "task": setup.task, "method": setup.method}
    return load_settings(choices, _assignments(setup), data={setup.task: data})


def flat_settings(settings: Settings) -> dict[str, Any]:
    """Every setting by its full name; those of the feature store, which training fills in, are left out."""
    sections = {name: value for name, value in asdict(settings).items() if name not in ("features", "tasks")}
    sections |= {"task": asdict(settings.task)}
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def train_arguments(grid: Grid, cell: Cell, folder: Path) -> list[str]:
    """The arguments with which ``python -m dept_vl.train`` repeats a cell in ``folder``."""
    setup = cell.setup
    stores = ["--features", str(grid.features[setup.task])] if setup.task in grid.features else []
    chosen = ["--task", setup.task, "--method", setup.method, "--backbone", setup.backbone]
    return [
        *chosen,
        "--data",
        str(grid.data[setup.task]),
        *stores,
        "--output",
        str(folder),
        *_assignments(setup),
        f"training.seed={cell.seed}",
    ]


def sweep_arguments(grid: Grid, folder: Path) -> list[str]:
    """The arguments with which ``python -m dept_vl.sweep`` is about the same cells in ``folder``."""
    lists = {"methods": grid.methods, "tasks": grid.tasks, "backbones": grid.backbones}
    options = [text for name, values in lists.items() for text in (f"--{name}", ",".join(values))]
    options += ["--seeds", "".join(f"{seed}," for seed in grid.seeds)]
    for name, paths in (("--data", grid.data), ("--features", grid.features)):
        options += [text for task, path in paths.items() for text in (name, f"{task}={path}")]
    budget = [] if grid.budget is None else ["--budget", str(grid.budget)]
    return [*options, *budget, "--output", str(folder), *(one.text for one in grid.overrides)]


def read_override(text: str, names: Sequence[str]) -> Override:
    """``[SCOPE:...]key=value,...``: a setting's values, for the cells of the named methods, tasks or backbones.

    Commas inside brackets and braces do not part values.

    Raises:
        UsageError: no such setting, no such name in the sweep, or no value.
    """
    left, equals, right = text.partition("=")
    *scope, key = left.split(":")
    values = _split(right)
    if not equals or not all(values):
        raise UsageError(f"{text!r} is no setting: write key=value, key=v1,v2, or METHOD:key=value for one method")
    foreign = [name for name in scope if name not in names]
    if foreign:
        raise UsageError(
            f"{text!r} is about {foreign[0]!r}, which is no method, task or backbone of this sweep."
            f"{nearest(foreign[0], names)} There are: {', '.join(names)}"
        )
    if key in SET_HERE:
        raise UsageError(f"{text!r}: this is set by {SET_HERE[key]}. Use that")
    if key.partition(".")[0] == "features":
        raise UsageError(
            f"{text!r}: training takes these settings from the feature store. Give them to dept_vl.extract"
        )
    known = [*(f"{home}.{one}" for home, keys in KEYS.items() for one in keys), *GROUPS]
    if key not in known:
        raise UsageError(f"{text!r}: there is no setting {key!r}.{nearest(key, known)} All are in configs/base.yaml")
    return Override(key, tuple(dict.fromkeys(values)), tuple(scope))


def read_seeds(text: str) -> tuple[int, ...]:
    """``3`` for the seeds 0 to 2, or the seeds themselves: ``0,3,7``, or ``5,`` for the single seed 5.

    Raises:
        UsageError: neither.
    """
    parts = text.removesuffix(",").split(",")
    if not all(part.strip().isdecimal() for part in parts) or text == "0":
        raise UsageError(f"--seeds is {text!r}; give how many, as in 3, or the seeds themselves, as in 0,3,7")
    numbers = tuple(dict.fromkeys(map(int, parts)))
    return numbers if "," in text else tuple(range(numbers[0]))


def check_reference(reference: str, rows: Sequence[Setup]) -> None:
    """Refuse what is neither a method nor the label of a row.

    Raises:
        UsageError: names what there is.
    """
    labels = list(dict.fromkeys(name for row in rows for name in (row.method, row.label)))
    if reference not in labels:
        raise UsageError(
            f"--reference is {reference!r}, which the sweep does not have.{nearest(reference, labels)} "
            f"There are: {', '.join(labels)}"
        )


def backbone_label(name: str) -> str:
    """A backbone as it stands in tables and folders: a folder by its own name, a Hugging Face id whole."""
    path = Path(name)
    return _safe(path.resolve().name if path.exists() or path.is_absolute() else name)


def _setups_of(grid: Grid, backbone: str, task: str, method: str) -> Iterator[Setup]:
    names = {backbone, backbone_label(backbone), task, method}
    # What is said of fewer cells is said over what is said of more.
    mine = sorted((one for one in grid.overrides if names.issuperset(one.scope)), key=lambda one: len(one.scope))
    axes = {one.key: one.values for one in mine}
    if grid.budget is not None and method not in BEYOND_BUDGET:
        axes = {"method.budget": (str(grid.budget),)} | axes
    several = [key for key, values in axes.items() if len(values) > 1]
    shorts = Counter(key.rpartition(".")[2] for key in several)
    short = {key: key.rpartition(".")[2] if shorts[key.rpartition(".")[2]] == 1 else key for key in several}
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        yield Setup(backbone, task, method, tuple(chosen.items()), tuple((short[key], chosen[key]) for key in several))


def _assignments(setup: Setup) -> list[str]:
    return [f"{key}={value}" for key, value in setup.overrides]


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets or braces."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _file_name(varied: Sequence[tuple[str, str]]) -> str:
    return _safe(",".join(f"{key}={value}" for key, value in varied))


def _safe(text: str) -> str:
    """The text with signs that every file system takes."""
    return re.sub(r"[^\w.,=+-]+", "-", text).strip(".")
