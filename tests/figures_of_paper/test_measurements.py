"""A cost is measured once, by what it depends on, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from dept_vl import cost as costs
from dept_vl.command_line import StopSignal
from dept_vl.config import load_settings
from dept_vl.cost import Cost
from dept_vl.figures_of_paper.measurements import Measurements, Trial
from dept_vl.settings import Settings
from feature_extraction.errors import DamagedError, Interrupted


@pytest.fixture
def trial() -> Trial:
    return Trial("t5-mini", load_settings({"task": "sst2"}, []))


@pytest.fixture
def measured(cost_of: Callable[..., Cost], monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that were measured, in turn."""
    found: list[Settings] = []

    def measure_apart(
        settings: Settings, data: Mapping[str, Path] | None, features: Mapping[str, Path], *, steps: int, warmup: int
    ) -> Cost:
        found.append(settings)
        return cost_of(settings)

    monkeypatch.setattr(costs, "measure_apart", measure_apart)
    return found


def measurements(folder: Path, *, steps: int = 5, data: dict[str, Path] | None = None) -> Measurements:
    return Measurements(folder, data=data, features={}, steps=steps, stop=StopSignal())


def test_the_longest_prompt_is_prompt_tuning_and_shorter_ones_are_dept(trial: Trial) -> None:
    long, short = trial.with_prompt(100).settings.method, trial.with_prompt(0).settings.method
    assert (long.name, long.prompt_length, long.rank) == ("prompt", 100, None)
    assert (short.name, short.prompt_length, short.rank) == ("dept", 0, None)


def test_a_cost_is_measured_once(trial: Trial, measured: list[Settings], tmp_path: Path) -> None:
    first = measurements(tmp_path / "new").cost(trial)
    assert measurements(tmp_path / "new").cost(trial) == first
    assert len(measured) == 1


def test_whatever_it_depends_on_is_measured_anew(trial: Trial, measured: list[Settings], tmp_path: Path) -> None:
    other = Trial("t5-mini", replace(trial.settings, data=replace(trial.settings.data, batch_size=7)))
    measurements(tmp_path).cost(trial)
    measurements(tmp_path).cost(other)
    measurements(tmp_path, steps=6).cost(trial)
    measurements(tmp_path, data={"sst2": tmp_path}).cost(trial)
    assert len(measured) == 4
    measurements(tmp_path).cost(trial)
    assert len(measured) == 4


def test_costs_of_another_version_are_measured_anew(trial: Trial, measured: list[Settings], tmp_path: Path) -> None:
    measurements(tmp_path).cost(trial)
    path = tmp_path / "costs.json"
    path.write_text(path.read_text().replace("latency_seconds", "former_name"))
    measurements(tmp_path).cost(trial)
    assert len(measured) == 2


def test_a_signal_keeps_what_is_measured(trial: Trial, measured: list[Settings], tmp_path: Path) -> None:
    stop = StopSignal()
    running = Measurements(tmp_path, data=None, features={}, steps=5, stop=stop)
    running.cost(trial)
    stop.name = "SIGTERM"
    running.cost(trial)
    with pytest.raises(Interrupted, match=r"1 costs are measured\. The same command goes on with the next"):
        running.cost(trial.with_prompt(20))


def test_damaged_costs_are_told(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text("[")
    with pytest.raises(DamagedError, match=r"costs\.json is not JSON .*Delete it; the costs are measured again"):
        measurements(tmp_path)
