"""Only numbers that were read at their source stand among the literature's, and they agree with each other."""

from __future__ import annotations

import statistics

import pytest

from dept_vl.config import layer_names
from dept_vl.figures_of_paper.literature import LITERATURE, literature
from dept_vl.figures_of_paper.method_tables import TABLES
from dept_vl.settings import METHODS

NAMES = (*TABLES, "few-shot")
CONFIRMED = {
    ("glue", "DePT"): 85.89,
    ("superglue", "DePT"): 76.49,
    ("mrqa", "DePT"): 73.03,
    ("vl", "VL-PET-small, 2.98 % trained"): 78.25,
    ("vl", "VL-PET-large, 4.16 % trained"): 79.20,
}
# Rows of papers that are known from memory alone: full fine-tuning, prompt tuning, LoRA, MPT; VL-Adapter's and LST's
# tables; DePT on images and on the other four tasks; few-shot.
REMEMBERED = (
    *(84.9, 86.8, 83.4, 84.8, 86.3, 85.6, 85.9, 73.9, 60.0, 74.1, 71.9, 63.8, 61.8),
    *(67.6, 65.9, 44.0, 114.9, 77.4, 67.1, 112.2, 112.9, 47.4, 96.1, 58.8, 113.7, 59.2, 59.8),
    *(59.0, 96.8, 95.6, 93.7, 49.6, 95.1, 62.7, 66.9, 68.2, 75.0, 78.6, 82.1),
)


def test_only_confirmed_rows_have_numbers() -> None:
    found = {(table, report.label) for table in NAMES for report in literature(table) if report.scores}
    assert found == set(CONFIRMED)


@pytest.mark.parametrize(("table", "label"), CONFIRMED)
def test_the_mean_is_that_of_the_scores(table: str, label: str) -> None:
    (report,) = (one for one in literature(table) if one.label == label and one.scores)
    assert set(report.scores) == set(TABLES[table].tasks)
    mean = statistics.fmean(report.scores.values())
    assert mean == pytest.approx(CONFIRMED[table, label], abs=0.0051)
    assert report.mean is None or mean == pytest.approx(report.mean, abs=0.0051)


def test_no_remembered_number_is_printed() -> None:
    printed = [
        score for table in NAMES for report in literature(table) for score in (*report.scores.values(), report.mean)
    ]
    assert not {score for score in printed if score is not None} & set(REMEMBERED)


def test_spot_values_of_the_published_logs() -> None:
    assert literature("glue")[0].scores["cola"] == 63.79
    assert literature("superglue")[0].scores["wsc"] == 67.31
    assert literature("mrqa")[0].scores["searchqa"] == 77.63


def test_every_row_names_its_source_whose_it_is_and_a_known_method() -> None:
    for table in NAMES:
        for report in literature(table):
            assert report.of.startswith("theirs (")
            assert len(report.source) > 40
            assert report.method is None or report.method in METHODS
            assert bool(report.scores) == ("1 run" in report.of)


def test_the_tables_tasks_are_tasks() -> None:
    assert {task for table in TABLES.values() for task in table.tasks} <= set(layer_names("task"))
    assert LITERATURE.is_file()
