"""A watched folder: adapters that come, change and go, and those that cannot be served."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from dept_vl.serving import adapter_folder
from dept_vl.serving.adapter_folder import AdapterFolder
from dept_vl.serving.mixed_model import MixedModel
from feature_extraction.errors import IncompatibleError


class FakeModel:
    """Remembers what it was told; a tensors file that says so is refused."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.loaded: dict[str, str] = {}

    def add(self, name: str, folder: Path) -> None:
        content = (folder / "adapter_model.safetensors").read_text()
        if content == "other backbone":
            raise IncompatibleError("It belongs to another backbone")
        if content == "strange":
            raise KeyError("visual")
        assert name not in self.loaded
        self.events.append(f"+{name}")
        self.loaded[name] = content

    def remove(self, name: str) -> None:
        self.events.append(f"-{name}")
        del self.loaded[name]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return time.time_ns()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(adapter_folder, "time", made)
    return made


@pytest.fixture
def watched(tmp_path: Path, clock: Clock) -> tuple[AdapterFolder, FakeModel, Path]:
    model, path = FakeModel(), tmp_path / "adapters"
    path.mkdir()
    return AdapterFolder(path, cast(MixedModel, model)), model, path


def write(folder: Path, content: str = "fine") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_text(content)
    (folder / "adapter_config.json").write_text("{}")


def long_ago(path: Path) -> None:
    """Let a folder's entries be those of long ago."""
    os.utime(path, (1, 1))


def test_adapters_are_folders_runs_and_the_tasks_of_runs(watched: tuple[AdapterFolder, FakeModel, Path]) -> None:
    folder, model, path = watched
    write(path / "colors")
    write(path / "run" / "adapter")
    write(path / "pair" / "adapter" / "vqa")
    write(path / "pair" / "adapter" / "nlvr2")
    write(path / ".hidden")
    write(path / "half.partial")
    (path / "unfinished run").mkdir()
    (path / "a file").write_text("")
    folder.refresh()
    assert list(model.loaded) == ["colors", "pair/nlvr2", "pair/vqa", "run"]


def test_what_comes_and_goes_is_taken_in_at_the_next_batch(
    watched: tuple[AdapterFolder, FakeModel, Path], clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model, path = watched
    folder.refresh()
    write(path / "one")
    folder.refresh()
    write(path / "other")
    shutil.rmtree(path / "one")
    folder.refresh()
    assert model.events == ["+one", "-one", "+other"]
    assert "Adapter one: gone" in capsys.readouterr().err


def test_an_adapter_whose_files_change_is_loaded_again_within_seconds(
    watched: tuple[AdapterFolder, FakeModel, Path], clock: Clock
) -> None:
    folder, model, path = watched
    write(path / "one")
    long_ago(path)
    folder.refresh()
    write(path / "one", "better")
    folder.refresh()
    assert model.loaded == {"one": "fine"}  # the folder of folders is as it was
    clock.now += adapter_folder.LOOK_AGAIN
    folder.refresh()
    folder.refresh()
    assert model.loaded == {"one": "better"}
    assert model.events == ["+one", "-one", "+one"]


def test_an_adapter_that_is_asked_for_is_looked_for_at_once_but_not_each_time(
    watched: tuple[AdapterFolder, FakeModel, Path], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model, path = watched
    (path / "run").mkdir()
    long_ago(path)
    folder.refresh()
    write(path / "run" / "adapter")  # training has finished
    folder.refresh(["other"])
    assert model.loaded == {}
    clock.now += 2 * adapter_folder.LOOK_FOR_UNKNOWN
    folder.refresh(["run"])
    assert model.loaded == {"run": "fine"}


def test_what_cannot_be_served_is_remembered_with_the_reason_until_it_changes(
    watched: tuple[AdapterFolder, FakeModel, Path], clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model, path = watched
    for name, content in (("alien", "other backbone"), ("odd", "strange"), ("good", "fine")):
        write(path / name, content)
    folder.refresh()
    assert folder.refused == {"alien": "It belongs to another backbone", "odd": "KeyError: 'visual'"}
    assert "Adapter alien is not served: It belongs to another backbone" in capsys.readouterr().err
    clock.now += adapter_folder.LOOK_AGAIN
    folder.refresh()
    assert capsys.readouterr().err == ""
    write(path / "alien")
    shutil.rmtree(path / "odd")
    folder.refresh()
    assert (folder.refused, sorted(model.loaded)) == ({}, ["alien", "good"])


def test_an_adapter_whose_tensors_come_after_its_configuration_is_tried_again(
    watched: tuple[AdapterFolder, FakeModel, Path], clock: Clock
) -> None:
    folder, model, path = watched
    write(path / "one")
    (path / "one" / "adapter_model.safetensors").unlink()
    folder.refresh()
    assert "one" in folder.refused
    write(path / "one")
    clock.now += adapter_folder.LOOK_AGAIN
    folder.refresh()
    assert (folder.refused, model.loaded) == ({}, {"one": "fine"})


def test_a_folder_that_cannot_be_read_changes_nothing(
    watched: tuple[AdapterFolder, FakeModel, Path], clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model, path = watched
    write(path / "one")
    folder.refresh()
    os.rename(path, path.with_name("elsewhere"))
    for _ in range(3):
        clock.now += adapter_folder.LOOK_AGAIN / 2
        folder.refresh(["one"])
    assert model.loaded == {"one": "fine"}
    assert capsys.readouterr().err.count("The adapters that are loaded stay as they are") == 1
    os.rename(path.with_name("elsewhere"), path)
    folder.refresh()
    assert model.events == ["+one"]


def test_the_folder_of_real_adapters_is_that_of_the_model(
    make_adapter: Callable[..., Any], backbone: Any, tmp_path: Path
) -> None:
    import torch

    make_adapter("one")
    make_adapter("drawn", task="vqa")  # of features, which this model has none of
    model = MixedModel(backbone, device=torch.device("cpu"))
    folder = AdapterFolder(tmp_path / "adapters", model)
    folder.refresh()
    assert (model.names(), list(folder.refused)) == (["one"], ["drawn"])
    assert "trained for something else" in folder.refused["drawn"]
