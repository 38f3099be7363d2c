"""The search for rates as a function of the trials so far."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dept_vl.command_line import StopSignal
from dept_vl.model.trainable import GROUPS
from dept_vl.sweeping import search
from dept_vl.sweeping.grid import Grid, setups
from dept_vl.sweeping.search import RANGES, Trial, best_rates, load_optuna, search_rates, suggest_rates
from feature_extraction.errors import Interrupted, NumericalError, UsageError

FIRST = Trial({"prompt": 0.3, "low_rank": 1e-3}, 50.0)


def test_every_group_has_a_range_of_two_decades() -> None:
    assert set(RANGES) == set(GROUPS)
    assert all(high / low == pytest.approx(100) for low, high in RANGES.values())


def test_equal_trials_are_followed_by_equal_ones() -> None:
    trials = [FIRST]
    for number in range(1, 8):
        rates = suggest_rates(trials, number)
        assert rates == suggest_rates(list(trials), number)
        assert all(RANGES[group][0] <= rate <= RANGES[group][1] for group, rate in rates.items())
        trials.append(Trial(rates, 100 - rates["prompt"]))
    assert len({trial.rates["prompt"] for trial in trials}) == 8


def test_failed_trials_and_rates_outside_the_ranges_are_no_obstacle() -> None:
    trials = [Trial({"prompt": 9.0}, 50.0), Trial({"prompt": 1.0}, None, "nan")]
    assert set(suggest_rates(trials, 2)) == {"prompt"}


def test_the_best_is_the_first_of_equal_ones() -> None:
    trials = [FIRST, Trial({"prompt": 1.0, "low_rank": 0.01}, 50.0), Trial({"prompt": 2.0, "low_rank": 0.01}, None)]
    assert best_rates(trials) == {"optimizer.prompt_lr": "0.3", "optimizer.low_rank_lr": "0.001"}


def test_a_missing_optuna_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"--search needs optuna, .* Run: pip install 'dept_vl\[sweep\]'"):
        load_optuna()


class TestTrials:
    @pytest.fixture
    def arguments(self) -> dict[str, Any]:
        grid = Grid(methods=("dept",), tasks=("rte",), data={"rte": Path("rte")})
        return {"grid": grid, "row": setups(grid)[0], "trials": 2, "stop": StopSignal()}

    @staticmethod
    def diverge(log: str) -> Any:
        def run_cell(grid: Grid, cell: object, folder: Path, **_: object) -> None:
            folder.mkdir(parents=True)
            (folder / "log.jsonl").write_text(log)
            raise NumericalError("Loss nan")

        return run_cell

    def test_no_score_at_all_is_a_failure(
        self, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search, "run_cell", self.diverge('{"step": 1, "update_norm": {"prompt": 1}}\n'))
        with pytest.raises(UsageError, match=r"No trial of t5-mini/rte/dept has a score: Loss nan\. Give lower rates"):
            search_rates(place=tmp_path, **arguments)
        assert [trial.score for trial in search.read_trials(tmp_path)] == [None, None]

    def test_a_first_trial_that_ends_at_once_is_a_failure(
        self, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search, "run_cell", self.diverge(""))
        with pytest.raises(UsageError, match=r"ended before its first step: Loss nan\. Give lower rates"):
            search_rates(place=tmp_path, **arguments)

    def test_a_signal_stops_it(self, arguments: dict[str, Any], tmp_path: Path) -> None:
        arguments["stop"].name = "SIGTERM"
        with pytest.raises(Interrupted, match=r"0 of 2 trials of t5-mini/rte/dept are done\. The same command goes on"):
            search_rates(place=tmp_path, **arguments)
