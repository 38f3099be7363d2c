"""The paper's tables of methods: ours from runs, and beside them what others report, as far as it is confirmed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dept_vl.figures_of_paper.literature import Report, literature
from dept_vl.figures_of_paper.page import Page, markdown_table
from dept_vl.figures_of_paper.sweep_results import Run
from dept_vl.sweeping.outcome import DONE, FAILED, MISSING
from dept_vl.sweeping.tables import latex
from feature_extraction.errors import UsageError


class MethodTable(NamedTuple):
    """Which tasks a table has, each with the metric that it shows; the checkpoint may be chosen by another."""

    title: str
    tasks: Mapping[str, str]


TABLES = {
    "glue": MethodTable(
        "GLUE",
        dict.fromkeys(("mnli", "qqp", "qnli", "sst2"), "accuracy")
        | {"stsb": "pearson", "mrpc": "accuracy", "rte": "accuracy", "cola": "matthews"},
    ),
    "superglue": MethodTable(
        "SuperGLUE", {"multirc": "f1_a"} | dict.fromkeys(("boolq", "wic", "wsc", "cb"), "accuracy")
    ),
    "mrqa": MethodTable("MRQA", dict.fromkeys(("nq", "hotpotqa", "searchqa", "newsqa"), "f1")),
    "other": MethodTable("Other tasks", dict.fromkeys(("winogrande", "yelp", "scitail", "paws"), "accuracy")),
    "vl": MethodTable("Images and text", dict.fromkeys(("vqa", "gqa", "nlvr2"), "accuracy") | {"caption": "cider"}),
}
NOT_RUN = "-"


class Row(NamedTuple):
    """A row of a table: means of ours, or what others report."""

    label: str
    of: str  # ours or theirs, on what backbone, of how many runs
    source: str
    scores: Mapping[str, tuple[float, float | None, int]]  # task: mean, standard deviation of a sample, runs
    ours: bool
    printed_mean: float | None = None  # that the source itself gives for these tasks

    def mean(self, tasks: Sequence[str]) -> float | None:
        """Over the tasks; None where one is missing."""
        if self.printed_mean is not None or any(task not in self.scores for task in tasks):
            return self.printed_mean
        return statistics.fmean(self.scores[task][0] for task in tasks)


def method_table(table: str, runs: Sequence[Run], tasks: Sequence[str], *, ours_only: bool, origin: str) -> Page:
    """One of the paper's tables of methods.

    Args:
        tasks: its columns.
        ours_only: leave out what others report, as for runs on other data.
        origin: where the runs are from, for the reader.

    Raises:
        UsageError: there is no run to show.
    """
    wanted = [run for run in runs if run.task in tasks]
    if not wanted:
        raise UsageError(
            f"table-{table} shows {', '.join(tasks)}, but the runs are of {', '.join({run.task: 0 for run in runs})}. "
            "Give the --tasks and the --sweep that belong together"
        )
    rows = _our_rows(table, wanted)
    if not ours_only:
        rows = _beside(rows, table, tasks)
    legend = _legend(rows, tasks, ours_only=ours_only)
    legend += [f"Theirs: {source}." for source in dict.fromkeys(row.source for row in rows if row.source)]
    undone = {(run.label, run.task, run.reason or run.state): run.state for run in wanted if run.state != DONE}
    notes = [f"{label} on {task}: {reason}." for label, task, reason in undone]
    head = ["method", "whose", *(f"{task} ({TABLES[table].tasks[task]})" for task in tasks), "mean"]
    cells = [_cells(row, tasks) for row in rows]
    title = f"{TABLES[table].title}: methods and tasks"
    return Page(
        title=title,
        rows=[record for row in rows for record in _records(row, table, tasks)],
        table=markdown_table(head, cells),
        notes=[origin, *legend, *notes],
        latex=_latex(title, head, cells, legend),
        unfinished=sum(run.state in (FAILED, MISSING) for run in wanted),
    )


def _our_rows(table: str, runs: Sequence[Run]) -> list[Row]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.label, run.backbone), []).append(run)
    rows = []
    for (label, backbone), group in groups.items():
        scores = {}
        for task in dict.fromkeys(run.task for run in group):
            metric = TABLES[table].tasks[task]
            found = [run.test[metric] for run in group if run.task == task and metric in run.test]
            if found:
                spread = statistics.stdev(found) if len(found) > 1 else None
                scores[task] = (statistics.fmean(found), spread, len(found))
        counts = sorted({count for _, _, count in scores.values()} or {0})
        many = " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
        rows.append(Row(label, f"ours ({backbone}, {many} run{'s' * (many != '1')})", "", scores, ours=True))
    return rows


def _beside(ours: Sequence[Row], table: str, tasks: Sequence[str]) -> list[Row]:
    """Ours, each method's followed by what others report of it; at the end the others."""
    theirs = [(report.method, _report_row(report, table, tasks)) for report in literature(table)]
    methods = [row.label.split(" ")[0] for row in ours]
    rows: list[Row] = []
    for number, (row, method) in enumerate(zip(ours, methods, strict=True)):
        rows.append(row)
        if method not in methods[number + 1 :]:
            rows += [one for other, one in theirs if other == method]
    return rows + [one for other, one in theirs if other not in methods and one.scores]


def _report_row(report: Report, table: str, tasks: Sequence[str]) -> Row:
    scores = {task: (score, None, 1) for task, score in report.scores.items() if task in tasks}
    mean = report.mean if set(tasks) == set(TABLES[table].tasks) else None
    return Row(report.label, report.of, report.source, scores, ours=False, printed_mean=mean)


def _cells(row: Row, tasks: Sequence[str]) -> list[str]:
    missing = NOT_RUN if row.ours else ""
    cells = []
    for task in tasks:
        score, spread, _ = row.scores.get(task, (None, None, 0))
        cells.append(missing if score is None else f"{score:.2f}" if spread is None else f"{score:.2f} ± {spread:.2f}")
    mean = row.mean(tasks)
    return [row.label, row.of, *cells, missing if mean is None else f"{mean:.2f}"]


def _legend(rows: Sequence[Row], tasks: Sequence[str], *, ours_only: bool) -> list[str]:
    notes = ["Scores times 100 on the test split; mean: over the tasks of this table."]
    if any(spread is not None for row in rows for _, spread, _ in row.scores.values()):
        notes.append("± is the standard deviation over the seeds.")
    if any(row.ours and task not in row.scores for row in rows for task in tasks):
        notes.append(f"{NOT_RUN}: not run, not ended well, or not defined, as a correlation of constant answers.")
    if not ours_only:
        notes.append(
            "Ours and theirs differ in backbone, steps and, where the data above are not the official ones, in the "
            "data: only rows of ours are compared under equal conditions."
        )
        if any(not row.ours and task not in row.scores for row in rows for task in tasks):
            notes.append("An empty cell: theirs is not confirmed, since the number was not read at its source.")
    return notes


def _records(row: Row, table: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The row's lines in the CSV: one for each task, and the mean."""
    head = {"method": row.label, "whose": "ours" if row.ours else "theirs", "of": row.of}
    records = []
    for task in tasks:
        score, spread, count = row.scores.get(task, (None, None, 0))
        metric = TABLES[table].tasks[task]
        records.append(
            {**head, "task": task, "metric": metric, "runs": count, "score": score, "std": spread, "source": row.source}
        )
    return [*records, {**head, "task": "mean", "score": row.mean(tasks), "source": row.source}]


def _latex(title: str, head: Sequence[str], cells: Sequence[Sequence[str]], legend: Sequence[str]) -> str:
    """The table for a paper; it needs the package booktabs."""
    lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering"]
    lines += [f"\\caption{{{latex(f'{title}. ' + ' '.join(legend))}}}"]
    lines += [f"\\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", r"\toprule"]
    lines += [f"{' & '.join(map(latex, row))} \\\\" for row in [head]] + [r"\midrule"]
    lines += [f"{' & '.join(map(latex, row))} \\\\" for row in cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
