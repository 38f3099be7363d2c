"""Means, deviations and the choice of a source, from scores written out by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dept_vl.transfer_results import Cell, Outcome, Start, compare, table, write_results

MNLI, SST2, SCRATCH = Start("mnli", "all"), Start("sst2", "all"), Start("scratch")


def outcomes(
    start: Start, validation: Sequence[float], test: Sequence[float | None], *, shots: int = 16
) -> list[Outcome]:
    return [
        Outcome(Cell(start, shots, seed), {"accuracy": one, "n": 4}, {"accuracy": other, "n": 5})
        for seed, (one, other) in enumerate(zip(validation, test, strict=True))
    ]


def test_a_row_has_mean_and_sample_deviation_over_the_seeds() -> None:
    (row,) = compare(outcomes(MNLI, [70, 80, 90], [50, 60, 61]), "accuracy")
    assert row[:4] == (16, "mnli", "all", 3)
    assert row[4:8] == pytest.approx((80, 10, 57, 6.0828), abs=1e-4)


def test_of_one_run_there_is_no_deviation() -> None:
    (row,) = compare(outcomes(MNLI, [70], [50]), "accuracy")
    assert (row.validation_mean, row.validation_std, row.test_mean, row.test_std) == (70, None, 50, None)


def test_the_source_is_chosen_by_validation_whatever_the_test_says() -> None:
    rows = compare([*outcomes(MNLI, [80, 70], [10, 20]), *outcomes(SST2, [60, 60], [90, 90])], "accuracy")
    assert [row.chosen for row in rows] == [True, False]


def test_each_number_of_examples_and_each_mode_has_its_own_choice() -> None:
    prompt = Start("sst2", "prompt")
    rows = compare(
        [
            *outcomes(MNLI, [80], [0]),
            *outcomes(SST2, [60], [0]),
            *outcomes(prompt, [10], [0]),
            *outcomes(MNLI, [50], [0], shots=4),
            *outcomes(SST2, [60], [0], shots=4),
        ],
        "accuracy",
    )
    assert [(row.shots, row.source, row.parts) for row in rows if row.chosen] == [
        (16, "mnli", "all"),
        (16, "sst2", "prompt"),
        (4, "sst2", "all"),
    ]


def test_of_equal_sources_the_first_is_chosen_and_scratch_never() -> None:
    rows = compare([*outcomes(SCRATCH, [99], [0]), *outcomes(SST2, [60], [0]), *outcomes(MNLI, [60], [0])], "accuracy")
    assert [row.chosen for row in rows] == [False, True, False]


def test_a_missing_score_leaves_no_mean() -> None:
    (row,) = compare(outcomes(MNLI, [70, 80], [50, None]), "accuracy")
    assert (row.test_mean, row.test_std) == (None, None)
    assert row.validation_mean == 75


def test_the_table_says_all_of_it() -> None:
    rows = compare([*outcomes(MNLI, [70, 80], [50, None]), *outcomes(SCRATCH, [70], [50])], "accuracy")
    assert table(rows, task="cb", metric="accuracy").splitlines() == [
        "Few-shot transfer to cb: accuracy, mean ± sample standard deviation over the seeds. Of the sources with as "
        "many examples and the same parts, the one with the highest mean on validation is chosen.",
        "",
        "| examples | source | parts | seeds | validation | test | chosen |",
        "|---|---|---|---|---|---|---|",
        "| 16 | mnli | all | 2 | 75.00 ± 7.07 | null | yes |",
        "| 16 | scratch | - | 1 | 70.00 | 50.00 |  |",
    ]


def test_the_three_files_tell_the_same(tmp_path: Path) -> None:
    found = [*outcomes(MNLI, [70, 80], [50, None]), *outcomes(SCRATCH, [70, 70], [50, 52])]
    sources = {"mnli": tmp_path / "mnli"}
    markdown = write_results(tmp_path, found, task="cb", metric="accuracy", sources=sources)
    assert (tmp_path / "results.md").read_text() == markdown
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["sources"] == {"mnli": str(tmp_path / "mnli")}
    assert (content["task"], content["metric"]) == ("cb", "accuracy")
    assert content["runs"][1] == {
        "source": "mnli",
        "parts": "all",
        "shots": 16,
        "seed": 1,
        "folder": "runs/mnli-all/k16-seed1",
        "validation": {"accuracy": 80, "n": 4},
        "test": {"accuracy": None, "n": 5},
    }
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, same in zip(rows, content["rows"], strict=True):
        assert {key: "" if value is None else str(value) for key, value in same.items()} == row
