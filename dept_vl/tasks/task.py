"""The Task record, and how one is found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import dept_vl.tasks
from dept_vl.formats.rows import HubSource
from dept_vl.settings import TaskSettings, nearest
from dept_vl.types import Example, Prediction, Scores
from feature_extraction.errors import UsageError

NO_TASKS = ("task", "answers", "family", "splits")  # the modules beside the tasks


class OfficialFiles(NamedTuple):
    """What existing predictions are scored against, by the names of the evaluation's options."""

    annotations: Path
    questions: Path | None = None
    choices: Path | None = None


def _no_ids(folder: Path, split: str) -> list[str]:
    return []


def _alone(split: str) -> tuple[str, ...]:
    return (split,)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set's formats, and how its answers are read, scored and submitted.

    ``read`` takes the data folder and one of our split names, ``read_files`` the official files themselves. Both give
    the examples in the order of the data set's own files. ``score`` expects exactly one prediction for each example,
    in any order. ``check_submission`` takes a file of any tool and, if given, the official questions, and says in a
    sentence each what the server would not take.
    """

    name: str
    read: Callable[[Path, str], list[Example]]
    read_files: Callable[[OfficialFiles], list[Example]]
    parse: Callable[[str], str]
    score: Callable[[Sequence[Prediction], Sequence[Example]], Scores]
    submit: Callable[[Sequence[Prediction], Path], None]
    read_submission: Callable[[Path], list[Prediction]]
    check_submission: Callable[[Path, Path | None], list[str]]
    submission_name: Callable[[str], str]

    file_options: tuple[str, ...] = ()  # which of OfficialFiles beside the annotations it makes use of
    labels: tuple[str, ...] = ()  # the only answers there are, where there are few
    graded: bool = False  # answers are better or worse, not right or wrong
    ignores_unknown: bool = False  # predictions for ids that the annotations do not have, as its official script does
    # Validation during training leaves out what takes long; None: it is the score.
    score_validation: Callable[[Sequence[Prediction], Sequence[Example]], Scores] | None = None
    # Ids that the server wants in a split's file although the split does not have them; they are answered "".
    blank_ids: Callable[[Path, str], list[str]] = _no_ids
    # Splits whose files the server takes only together, packed by ``bundle`` into one file (split: file).
    server_splits: Callable[[str], tuple[str, ...]] = _alone
    bundle: Callable[[Mapping[str, Path], Path], None] | None = None
    hub: HubSource | None = None  # where dept_vl.fetch gets the data set


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
