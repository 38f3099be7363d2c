"""The pages of the text tasks' families are true: splits, settings, texts, metrics and the servers' files."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from dept_vl.config import layer_names, load_settings
from dept_vl.settings import TaskSettings
from dept_vl.tasks.glue import SERVER_FILES as GLUE_FILES
from dept_vl.tasks.superglue import SERVER_FILES as SUPERGLUE_FILES
from dept_vl.tasks.task import load_task
from dept_vl.types import Prediction

TESTS = Path(__file__).parent
PAGES = TESTS.parent / "docs" / "tasks"
SETTINGS = {name: load_settings({"task": name}, []).task for name in layer_names("task")}
FAMILIES = sorted({one.module for one in SETTINGS.values() if one.images_per_example == 0})
ALL = "all"


def members(family: str) -> dict[str, TaskSettings]:
    return {name: one for name, one in SETTINGS.items() if one.module == family}


def rows(family: str, heading: str, number: int = 0) -> list[list[str]]:
    """The cells of a table below a heading, without its head."""
    section = (PAGES / f"{family}.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)[number]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def named(family: str, cell: str) -> list[str]:
    """The tasks of a cell such as: `rte` `cola`, all, or all but `mnli`."""
    return [name for name in members(family) if name not in code(cell)] if cell.startswith(ALL) else code(cell)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_has_its_tasks_splits(family: str) -> None:
    documented: dict[str, dict[str, str]] = {name: {} for name in members(family)}
    for tasks, split, source in rows(family, "Splits"):
        for name in named(family, tasks):
            documented[name][code(split)[0]] = code(source)[0]
    assert documented == {name: one.splits for name, one in members(family).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_has_its_tasks_settings(family: str) -> None:
    documented = {
        name: (int(text), int(target), code(metric)[0])
        for tasks, text, target, metric in rows(family, "Settings")
        for name in named(family, tasks)
    }
    assert documented == {
        name: (one.max_text_length, one.max_target_length, one.selection_metric)
        for name, one in members(family).items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_texts_of_a_page_are_those_that_a_model_reads(family: str) -> None:
    heading = "Texts and answers" if family == "reading" else "Texts and labels"
    seen = set()
    for tasks, *cells in rows(family, heading):
        texts = [" ".join(cells)] if family == "reading" else cells
        for name in code(tasks):
            seen.add(name)
            for template, cell in zip(("dept", "t5"), texts if len(texts) > 1 else texts * 2, strict=True):
                settings = load_settings({"task": name}, [f"task.template={template}"]).task
                examples = load_task(settings).read(TESTS / "toy_data" / name, "train")
                found = {(one.text.strip(), target.text) for one in examples for target in one.targets}
                assert cell == "the same" or tuple(code(cell)) in found, (name, template)
    assert seen == set(members(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_has_its_tasks_metrics(family: str) -> None:
    documented: dict[str, set[str]] = {name: set() for name in members(family)}
    for key, *cells in rows(family, "metrics.json"):
        for name in named(family, cells[0] if len(cells) == 3 else ALL):
            documented[name] |= set(code(key))
    for name, settings in members(family).items():
        task = load_task(settings)
        examples = task.read(TESTS / "toy_data" / name, "validation")
        scores = task.score([Prediction(one.example_id, one.references[0]) for one in examples], examples)
        assert set(scores.metrics) == documented[name], name


def test_the_files_that_glues_server_takes_are_all_there() -> None:
    documented = {
        code(file)[0]: (int(count.replace(",", "")), code(labels))
        for file, count, labels in rows("glue", "From data to the server")
    }
    assert documented == {name: (file.rows, list(file.labels)) for name, file in GLUE_FILES.items()}


def test_the_files_that_superglues_server_takes_are_all_there() -> None:
    documented = {
        code(file)[0]: (int(count.replace(",", "")), code(labels), kind.split(",")[0])
        for file, count, labels, kind in rows("superglue", "From data to the server")
    }
    assert documented == {
        name: (count, list(form.labels), {str: "text", int: "number"}[form.label_type])
        for name, (form, count) in SUPERGLUE_FILES.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_names_its_sources_on_the_hub(family: str) -> None:
    text = (PAGES / f"{family}.md").read_text()
    sources = importlib.import_module(f"dept_vl.tasks.{family}").HUB
    for name, source in sources.items():
        assert source.repository in text or source.repository.split("/")[0] in text, name
