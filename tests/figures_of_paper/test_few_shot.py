"""The few-shot page: every method and source, means with their deviation, theirs empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from dept_vl.figures_of_paper.few_shot import FewShot, few_shot
from dept_vl.figures_of_paper.page import Page
from dept_vl.transfer_results import Row


@pytest.fixture(scope="module")
def page() -> Page:
    rows = [
        Row(4, "mnli", "all", 3, 50.0, 1.0, 60.0, 2.0, chosen=True),
        Row(16, "mnli", "all", 3, 50.0, 1.0, 65.0, 1.5, chosen=True),
        Row(4, "scratch", "", 1, 50.0, None, 55.0, None, chosen=False),
        Row(16, "scratch", "", 3, 50.0, None, None, None, chosen=False),
    ]
    return few_shot([FewShot("cb", "dept", "f1_macro", rows)], data={"cb": Path("superglue/CB")}, backbone="t5-mini")


def test_the_table_has_means_and_deviations(page: Page) -> None:
    lines = page.table.splitlines()
    assert lines[2] == "| cb | f1_macro | 4 | dept | from mnli (all) | ours (t5-mini, 3 seed(s)) | 60.00 ± 2.00 | yes |"
    assert lines[4] == "| cb | f1_macro | 4 | dept | scratch | ours (t5-mini, 1 seed(s)) | 55.00 |  |"
    assert "scratch | ours (t5-mini, 3 seed(s)) | - |  |" in lines[5]


def test_theirs_is_empty_and_said_so(page: Page) -> None:
    assert page.table.splitlines()[-1] == "| cb |  |  | DePT |  | theirs (T5-base) |  |  |"
    assert "An empty cell: theirs is not confirmed, since the number was not read at its source." in page.notes
    assert "Data: cb: superglue/CB. Backbone: t5-mini." in page.notes


def test_the_csv_has_the_transfers_rows(page: Page) -> None:
    assert [(row["method"], row["source"], row["shots"], row["test_mean"], row["test_std"]) for row in page.rows] == [
        ("dept", "mnli", 4, 60.0, 2.0),
        ("dept", "mnli", 16, 65.0, 1.5),
        ("dept", "scratch", 4, 55.0, None),
        ("dept", "scratch", 16, None, None),
    ]


def test_the_picture_has_a_curve_of_each_start(page: Page) -> None:
    for text in ("dept, from mnli (all)", "dept, scratch", "training examples", "16"):
        assert f"<!-- {text} -->" in (page.picture or b"").decode()
