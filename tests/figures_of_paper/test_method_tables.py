"""Tables of methods: means over seeds and tasks, ours and theirs told apart, and what is not confirmed left empty."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dept_vl.figures_of_paper.method_tables import TABLES, method_table
from dept_vl.figures_of_paper.page import Page
from dept_vl.figures_of_paper.sweep_results import Run
from feature_extraction.errors import UsageError

MRQA = ("nq", "hotpotqa", "searchqa", "newsqa")


def made(runs: list[Run], tasks: tuple[str, ...] = MRQA, *, table: str = "mrqa", ours_only: bool = False) -> Page:
    return method_table(table, runs, tasks, ours_only=ours_only, origin="Ours: toys.")


def lines(page: Page) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.table.splitlines()]


@pytest.fixture
def runs(run_of: Callable[..., Run]) -> list[Run]:
    """Two methods on all four tasks; exact match is what the checkpoints are chosen by, F1 what the table has."""
    found = [run_of(task, "dept", seed, exact_match=10.0, f1=20.0 + 2 * seed) for task in MRQA for seed in range(3)]
    return [*found, *(run_of(task, "prompt", f1=30.0) for task in MRQA[:3]), run_of("newsqa", "prompt")]


def test_ours_stand_beside_theirs(runs: list[Run]) -> None:
    head, _, *rows = lines(made(runs))
    assert head == ["method", "whose", *(f"{task} (f1)" for task in MRQA), "mean"]
    assert rows[0] == ["dept", "ours (t5-mini, 3 runs)", *["22.00 ± 2.00"] * 4, "22.00"]
    assert rows[1] == ["DePT", "theirs (T5-base, 1 run)", "73.21", "76.82", "77.63", "64.44", "73.03"]


def test_what_is_not_confirmed_is_empty_and_said_so(runs: list[Run]) -> None:
    page = made(runs)
    assert lines(page)[5] == ["prompt tuning", "theirs (T5-base)", *[""] * 5]
    assert "An empty cell: theirs is not confirmed, since the number was not read at its source." in page.notes


def test_what_is_not_done_is_a_dash_and_its_reason_is_told(runs: list[Run]) -> None:
    page = made(runs)
    assert lines(page)[4] == ["prompt", "ours (t5-mini, 1 run)", *["30.00"] * 3, "-", "-"]
    assert "prompt on newsqa: the loss is not finite." in page.notes
    assert any(note.startswith("-: not run") for note in page.notes)
    assert page.unfinished == 1


def test_the_csv_has_the_same_numbers(runs: list[Run]) -> None:
    rows = made(runs).rows
    ours = [row for row in rows if row["method"] == "dept" and row["task"] == "nq"]
    assert [(row["whose"], row["score"], row["std"], row["runs"]) for row in ours] == [("ours", 22.0, 2.0, 3)]
    theirs = [row["score"] for row in rows if row["method"] == "DePT" and row["task"] in MRQA]
    assert theirs == [73.21, 76.82, 77.63, 64.44]
    assert {row["whose"] for row in rows} == {"ours", "theirs"}


def test_some_columns_have_the_means_of_these(runs: list[Run]) -> None:
    rows = lines(made(runs, ("nq", "newsqa")))
    assert rows[3] == ["DePT", "theirs (T5-base, 1 run)", "73.21", "64.44", "68.82"]


def test_theirs_can_be_left_out(runs: list[Run]) -> None:
    page = made(runs, ours_only=True)
    assert "theirs" not in page.table
    assert [row[0] for row in lines(page)[2:]] == ["dept", "prompt"]
    assert not any("theirs" in note.lower() for note in page.notes)


def test_each_value_that_a_sweep_varies_is_a_row_and_theirs_comes_once(run_of: Callable[..., Run]) -> None:
    runs = [run_of("nq", "dept", varied={"prompt_length": m}, f1=float(m)) for m in ("20", "40")]
    names = [row[0] for row in lines(made(runs, ("nq",)))[2:]]
    assert names == ["dept prompt_length=20", "dept prompt_length=40", "DePT"]


def test_others_methods_come_last(run_of: Callable[..., Run]) -> None:
    scores = {"vqa": "accuracy", "gqa": "accuracy", "nlvr2": "accuracy", "caption": "cider"}
    rows = lines(
        made([run_of(task, "dept", **{metric: 50.0}) for task, metric in scores.items()], tuple(scores), table="vl")
    )
    assert rows[0][5] == "caption (cider)"
    assert [row[0] for row in rows[2:]] == [
        "dept",
        "DePT",
        "VL-PET-small, 2.98 % trained",
        "VL-PET-large, 4.16 % trained",
    ]
    assert rows[3][1:] == ["theirs (CLIP-T5)", *[""] * 5]
    assert rows[5][1:] == ["theirs (CLIP-BART, 1 run)", "66.40", "54.94", "73.36", "122.11", "79.20"]


def test_cb_is_shown_by_accuracy_though_chosen_by_macro_f1(run_of: Callable[..., Run]) -> None:
    rows = lines(made([run_of("cb", "dept", f1_macro=40.0, accuracy=60.0)], ("cb",), table="superglue"))
    assert rows[2][2] == "60.00"


def test_the_latex_has_the_table_and_its_legend(runs: list[Run]) -> None:
    text = made(runs).latex or ""
    assert r"dept & ours (t5-mini, 3 runs) & 22.00 $\pm$ 2.00" in text
    assert r"Shi \& Lipani" in text
    assert text.count(r"\\") == 2 + 4 - 1  # head and four rows


def test_runs_of_other_tasks_are_refused(runs: list[Run]) -> None:
    with pytest.raises(UsageError, match="table-glue shows rte, but the runs are of nq, hotpotqa, searchqa, newsqa"):
        made(runs, ("rte",), table="glue")


def test_the_papers_tables_have_their_tasks() -> None:
    sizes = {name: len(table.tasks) for name, table in TABLES.items()}
    assert sizes == {"glue": 8, "superglue": 5, "mrqa": 4, "other": 4, "vl": 4}
