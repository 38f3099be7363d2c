"""The Task record, and how one is found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import dept_vl.tasks
from dept_vl.config import TaskSettings, nearest
from dept_vl.types import Example, Prediction, Scores
from feature_extraction.errors import UsageError

NO_TASKS = ("task", "files")  # the modules beside the tasks


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set's formats, and how its answers are read, scored and submitted.

    ``read`` takes the data folder and one of our split names; ``read_files`` takes annotations, and questions where
    the format keeps them apart. Both give the examples in the order of the data set's own files.
    ``score`` expects exactly one prediction for each example, in any order.
    """

    name: str
    read: Callable[[Path, str], list[Example]]
    read_files: Callable[[Path, Path | None], list[Example]]
    parse: Callable[[str], str]
    score: Callable[[Sequence[Prediction], Sequence[Example]], Scores]
    submit: Callable[[Sequence[Prediction], Path], None]
    read_submission: Callable[[Path], list[Prediction]]
    submission_name: Callable[[str], str]


def load_task(settings: TaskSettings) -> Task:
    """Build the task of the module that the settings name.

    Raises:
        UsageError: dept_vl/tasks has no such module.
    """
    modules = [module.name for module in pkgutil.iter_modules(dept_vl.tasks.__path__) if module.name not in NO_TASKS]
    if settings.module not in modules:
        raise UsageError(
            f"task.module is {settings.module!r}, but dept_vl/tasks has no such module."
            f"{nearest(settings.module, modules)} There are: {', '.join(modules)}"
        )
    return cast(Task, importlib.import_module(f"dept_vl.tasks.{settings.module}").build(settings))


def split_name(splits: Mapping[str, str], split: str) -> str:
    """The data set's own name for one of our splits.

    Raises:
        UsageError: the task's settings name no such split.
    """
    if split not in splits:
        raise UsageError(
            f"No split is called {split!r}.{nearest(split, splits)} task.splits has: {', '.join(splits) or 'none'}. "
            f"Add one with task.splits.{split}=NAME, NAME as in the file names"
        )
    return splits[split]
