"""A sweep's results.csv becomes runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dept_vl.figures_of_paper.sweep_results import read_runs
from feature_extraction.errors import DamagedError, InputDataError

HEAD = "backbone,task,method,prompt_lr,seed,settings,state,reason,metric,test,test.accuracy,test.ci_low,test.ci_high"


def test_all_that_a_figure_needs_is_read(tmp_path: Path) -> None:
    rows = [
        "t5-mini,rte,dept,0.3,1,,done,,accuracy,60,60,50.5,70",
        "t5-mini,rte,full,,0,,failed,no memory,accuracy,,,,",
    ]
    (tmp_path / "results.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    done, failed = read_runs(tmp_path)
    assert (done.label, done.seed, done.score, done.low, done.high) == ("dept prompt_lr=0.3", 1, 60.0, 50.5, 70.0)
    assert (failed.label, failed.score, failed.state, failed.reason) == ("full", None, "failed", "no memory")
    assert failed.low is None


def test_an_interval_of_another_metric_is_left_out(tmp_path: Path) -> None:
    row = "t5-mini,cola,dept,,0,,done,,matthews,10,60,50,70,10"
    (tmp_path / "results.csv").write_text(f"{HEAD},test.matthews\n{row}\n")
    (run,) = read_runs(tmp_path)
    assert (run.score, run.low, run.high) == (10.0, None, None)


def test_a_folder_without_results_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputDataError, match=r"no results\.csv is there\. Give the --output folder of python -m dept_vl\.sweep"
    ):
        read_runs(tmp_path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(f"{HEAD}\nt5-mini,rte,dept,0.3,first\n")
    with pytest.raises(DamagedError, match=r"is not what dept_vl\.sweep writes .*the sweep's command with --collect"):
        read_runs(tmp_path)
