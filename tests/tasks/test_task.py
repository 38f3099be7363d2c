from __future__ import annotations

import pytest

from dept_vl.settings import TaskSettings, nearest
from dept_vl.tasks.task import load_task, split_name
from feature_extraction.errors import UsageError


def test_a_task_is_found_by_its_module_and_keeps_its_name() -> None:
    assert load_task(TaskSettings(name="okvqa", module="vqa")).name == "okvqa"


@pytest.mark.parametrize("module", ["vqq", "task", "files", "no.such"])
def test_an_unknown_module_is_refused_with_what_there_is(module: str) -> None:
    with pytest.raises(UsageError, match=rf"task.module is '{module}', but dept_vl/tasks has no .* There are: .*vqa"):
        load_task(TaskSettings(module=module))


def test_the_nearest_module_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'vqa'\?"):
        load_task(TaskSettings(module="vqa2"))


def test_a_split_has_the_name_of_the_settings() -> None:
    assert split_name({"validation": "val2014"}, "validation") == "val2014"


def test_an_unknown_split_is_refused_with_what_there_is() -> None:
    message = (
        r"No split is called 'valid'. Did you mean 'validation'\? task.splits has: train, validation. "
        r"Add one with task.splits.valid=NAME"
    )
    with pytest.raises(UsageError, match=message):
        split_name({"train": "train2014", "validation": "val2014"}, "valid")
    with pytest.raises(UsageError, match=r"task.splits has: none"):
        split_name({}, "train")


def test_nothing_is_suggested_where_nothing_is_similar() -> None:
    assert nearest("xyz", ["vqa", "caption"]) == ""
