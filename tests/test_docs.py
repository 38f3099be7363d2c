"""The pages of docs/ are true: commands, settings, tables, links, and the task that docs/extending.md adds."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from PIL import Image

import dept_vl.tasks
from dept_vl.command_line import run
from dept_vl.config import GROUPS, configs_folder, layer_names, load_settings
from dept_vl.evaluate import main as evaluate
from dept_vl.extract import main as extract
from dept_vl.settings import KEYS
from dept_vl.tasks.task import load_task
from dept_vl.train import main as train
from dept_vl.types import Prediction
from dept_vl.validate import main as validate
from feature_extraction import FeatureStore
from feature_extraction.regions.boxes_formats import read_boxes

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
TASK_PAGES = {path.stem: path for path in (DOCS / "tasks").glob("*.md") if path.stem in layer_names("task")}
EXTENDING = DOCS / "extending.md"
NEW_TASK = "labels"  # which docs/extending.md adds


class Command(NamedTuple):
    """A command of a page: ``python -m MODULE ARGUMENTS``, or the same by a launcher of several processes."""

    page: Path
    module: str
    arguments: list[str]

    def chosen(self, option: str) -> str | None:
        """What is given to an option."""
        flag = f"--{option}"
        return self.arguments[self.arguments.index(flag) + 1] if flag in self.arguments else None

    @property
    def overrides(self) -> list[str]:
        """The settings; those that a shell loop fills in are left out."""
        return [one for one in self.arguments if re.match(r"\w+\.[\w.-]+=[^$]*$", one)]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands() -> Iterator[Command]:
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        for line in lines:
            found = re.search(r"-m (?:-- )?(dept_vl[\w.]*)(.*)", line)
            if found:
                yield Command(page, found[1], shlex.split(found[2].rstrip(";"), comments=True))


COMMANDS = list(commands())


def table(page: Path, heading: str, *, number: int = 0) -> list[list[str]]:
    """The cells of a table below a heading, the first if no other is named, without its head."""
    section = page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)[number]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()[2:]]


def code(cell: str) -> str:
    """What stands in backquotes."""
    (text,) = re.findall(r"`([^`]+)`", cell)
    return str(text)


@cache
def options_of(module: str) -> frozenset[str]:
    """The options that a command's own help names."""
    text = io.StringIO()
    module = "dept_vl.bench.commands" if module == "dept_vl.bench" else module  # a package, whose __main__ calls that
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    return frozenset(re.findall(r"--[a-z][\w-]*", text.getvalue()))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page.name}:{command.module}")
def test_a_command_has_only_options_that_there_are(command: Command) -> None:
    used = {argument for argument in command.arguments if re.match(r"--[a-z]", argument)}
    assert used <= options_of(command.module), command.arguments


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page.name}:{command.module}")
def test_the_settings_of_a_command_are_in_order(command: Command) -> None:
    choices = {group: command.chosen(group) for group in GROUPS if group != "features"}
    if command.module == "dept_vl.extract":
        choices["features"] = command.chosen("features")
    if choices["task"] is None:
        choices["task"] = command.page.stem if command.page.stem in TASK_PAGES else ",".join(layer_names("task"))
    choices = {group: name for group, name in choices.items() if name is None or "$" not in name}
    if NEW_TASK not in (choices.get("task") or ""):  # which is not there yet
        load_settings(choices, command.overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_are_settings(page: Path) -> None:
    for section, key in re.findall(r"`(\w+)\.(\w+)[^`]*`", page.read_text()):
        if section in KEYS and key not in ("yaml", "store"):
            assert key in KEYS[section], f"{section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_each_of_the_four_tasks_has_a_page() -> None:
    assert {"vqa", "gqa", "nlvr2", "caption"} <= set(TASK_PAGES)


@pytest.mark.parametrize("task", TASK_PAGES)
def test_a_page_has_its_task_s_splits(task: str) -> None:
    documented = {code(split): code(name) for split, name, *_ in table(TASK_PAGES[task], "Splits")}
    assert documented == load_settings({"task": task}, []).task.splits


@pytest.mark.parametrize("task", TASK_PAGES)
def test_a_page_has_its_task_s_settings(task: str) -> None:
    documented = {code(key): yaml.safe_load(code(value)) for key, value, *_ in table(TASK_PAGES[task], "Settings")}
    settings = load_settings({"task": task}, []).task
    assert documented == {key: getattr(settings, key) for key in documented}
    layer = yaml.safe_load((configs_folder() / "task" / f"{task}.yaml").read_text())["task"]
    assert set(layer) - {"name", "module", "splits"} <= set(documented)


@pytest.mark.parametrize("task", TASK_PAGES)
def test_a_page_has_its_task_s_metrics(task: str) -> None:
    documented = {code(key).replace("…", "") for key, *_ in table(TASK_PAGES[task], "metrics.json")}
    module = load_task(load_settings({"task": task}, []).task)
    examples = module.read(REPOSITORY / "tests" / "toy_data" / task, "validation")
    score = module.score_validation or module.score
    scores = score([Prediction(one.example_id, one.references[0]) for one in examples], examples)
    assert {re.sub(r"/.*", "/", key) for key in scores.metrics} == documented


def test_the_backbone_of_the_features_page_makes_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = blocks(DOCS / "features.md", "python")
    (tmp_path / "my_tower.py").write_text(source)
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (70 * number, 9, 200)).save(tmp_path / "images" / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    extract(["--images", "images", "--output", "store", "--features", "my_tower:build", "features.batch_size=2"])
    store = FeatureStore.open("store")
    assert (len(store), store.visual_tokens, store.feature_width) == (3, 64, 32)
    assert store.read("2").boxes[-1].tolist() == [0.875, 0.875, 1, 1]


def test_the_features_page_has_every_recipe_with_its_tokens_and_bytes() -> None:
    """As the head of each recipe states them, which tests/feature_extraction/test_recipes.py proves."""
    documented = {}
    for names, _, pixels, tokens, size in table(DOCS / "features.md", "Backbones", number=1):
        documented.update(
            {name: (int(pixels), re.findall(r"\d+", tokens), size) for name in re.findall(r"`(\w+)`", names)}
        )
    for name in layer_names("features"):
        head = " ".join(re.findall(r"^# (.*)", (configs_folder() / "features" / f"{name}.yaml").read_text(), re.M))
        count, width, size = re.findall(r"(\d+) visual tokens of width (\d+); ([\d,]+) bytes an image", head)[0]
        found = (load_settings({"features": name}, []).features.image_size, [count, width], size)
        assert name in ("easy_vqa", "nlvr") or documented[name] == found, name


def test_the_file_of_boxes_on_the_features_page_is_one(tmp_path: Path) -> None:
    (text,) = blocks(DOCS / "features.md", "json")
    (tmp_path / "boxes.json").write_text(text)
    assert read_boxes(tmp_path / "boxes.json").detector == "my-detector"


@pytest.fixture
def new_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two files of docs/extending.md at their places, in copies of these; the folder for everything else."""
    (source,), (layer,) = blocks(EXTENDING, "python"), blocks(EXTENDING, "yaml")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / f"{NEW_TASK}.py").write_text(source)
    shutil.copytree(configs_folder(), tmp_path / "configs")
    (tmp_path / "configs" / "task" / f"{NEW_TASK}.yaml").write_text(layer)
    monkeypatch.setattr(dept_vl.tasks, "__path__", [*dept_vl.tasks.__path__, str(tmp_path / "tasks")])
    monkeypatch.setattr("dept_vl.config.configs_folder", lambda: tmp_path / "configs")
    monkeypatch.delitem(sys.modules, f"dept_vl.tasks.{NEW_TASK}", raising=False)
    importlib.invalidate_caches()
    return tmp_path


@pytest.fixture
def tables(new_task: Path) -> Path:
    """Tables for the images of the toy store."""
    folder = new_task / "tables"
    folder.mkdir()
    for split in ("train", "val", "test"):
        labels = ("red", "blue", "green", "red") if split != "test" else ("",) * 4
        rows = [f"toy_{split}_{number:012d}\t{label}".rstrip("\t") for number, label in enumerate(labels)]
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_the_new_task_goes_from_its_tables_to_a_checked_file(
    new_task: Path,
    tables: Path,
    train_arguments: Callable[..., list[str]],
    toy_vqa: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = [one for one in train_arguments(new_task / "run", data=tables)[2:] if not one.startswith("task.")]
    train(["--task", NEW_TASK, *small])
    evaluate(["--run", str(new_task / "run"), "--split", "test"])
    evaluate(["--run", str(new_task / "run"), "--split", "validation"])
    metrics = json.loads((new_task / "run" / "evaluation" / "validation" / "metrics.json").read_text())
    assert metrics["n"] == 4
    assert metrics["accuracy"] in (0, 25, 50, 75, 100)
    file = new_task / "run" / "evaluation" / "test" / "labels_test_results.tsv"
    assert all(line.split("\t")[1] in ("red", "blue", "green") for line in file.read_text().splitlines())
    validate(["--task", NEW_TASK, "--submission", str(file), "--questions", str(tables / "test.tsv")])
    assert "exactly the ids of" in capsys.readouterr().out
    shared = [*small, "tasks.vqa.splits={train: train, validation: val, test: test}", "--data", f"vqa={toy_vqa}"]
    shared[shared.index(str(tables))] = f"{NEW_TASK}={tables}"
    shared[shared.index(str(new_task / "run"))] = str(new_task / "both")
    train(["--task", f"vqa,{NEW_TASK}", *shared])
    assert {path.name for path in (new_task / "both" / "adapter").iterdir()} == {"vqa", NEW_TASK}


def test_faults_of_the_new_task_s_files_are_named(
    new_task: Path, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = new_task / "answers.tsv"
    file.write_text("toy_test_000000000000\tred\tblue\nanother\tred\n")
    arguments = ["--task", NEW_TASK, "--submission", str(file), "--questions", str(tables / "test.tsv")]
    assert run(validate, arguments) == 3
    message = capsys.readouterr().err
    assert "lines that are not image id, tab, label: 1 (1)" in message
    assert "missing ids: 3 (toy_test_000000000001, " in message
    assert "ids that the questions do not have: 1 (another)" in message
    scored = ["--task", NEW_TASK, "--predictions", str(file), "--annotations", str(tables / "val.tsv")]
    assert run(evaluate, scored) == 3
    assert "lines that are not image id, tab, label: 1 (1)" in capsys.readouterr().err
    file.write_bytes(b"\xff\xfe")
    assert run(validate, arguments) == 3
    assert f"{file} is in UTF-16" in capsys.readouterr().err


def test_the_new_task_s_file_is_written_as_all_others_are() -> None:
    (source,) = blocks(EXTENDING, "python")
    for check in (["check", "--output-format=concise"], ["format", "--diff"]):
        command = [sys.executable, "-m", "ruff", *check, "--stdin-filename", f"dept_vl/tasks/{NEW_TASK}.py", "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 0, done.stdout + done.stderr
