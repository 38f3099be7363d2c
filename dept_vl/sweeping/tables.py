"""The files of a sweep's results: CSV for machines, Markdown and LaTeX for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dept_vl.sweeping.grid import Setup, backbone_label
from dept_vl.sweeping.outcome import Outcome
from dept_vl.sweeping.results import Entry, Table, trained_parameters
from dept_vl.sweeping.search import Trial
from feature_extraction.durable import write_durably

if TYPE_CHECKING:
    from dept_vl.cost import Cost

LATEX_SIGNS = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def write_results(
    folder: Path, outcomes: Sequence[Outcome], table: Table, *, searches: Mapping[Setup, Sequence[Trial]]
) -> str:
    """Write results.csv, search.csv where there was a search, and table.csv, .md and .tex; the Markdown comes back."""
    markdown = to_markdown(table)
    files = {"results.csv": runs_csv(outcomes), "table.csv": table_csv(table), "table.md": markdown}
    files |= {"table.tex": to_latex(table)} | ({"search.csv": trials_csv(searches)} if searches else {})
    for name, content in files.items():
        write_durably(folder / name, content.encode())
    return markdown


def runs_csv(outcomes: Sequence[Outcome]) -> str:
    """A line for each run: what it is, what became of it, all its scores, what it trained and what it costs."""
    rows = []
    for outcome in outcomes:
        setup, trained, cost = outcome.cell.setup, trained_parameters(outcome.folder), outcome.cost
        rows.append(
            {
                **_names(setup),
                "seed": outcome.cell.seed,
                "settings": " ".join(f"{key}={value}" for key, value in setup.overrides),
                "state": outcome.state,
                "reason": outcome.reason,
                "exit_code": outcome.exit_code or None,
                "metric": outcome.metric,
                "validation": outcome.validation.get(outcome.metric),
                "test": outcome.test.get(outcome.metric),
                **{f"validation.{name}": value for name, value in outcome.validation.items()},
                **{f"test.{name}": value for name, value in outcome.test.items()},
                **(trained._asdict() if trained else {}),
                **_cost_columns(cost),
                "folder": str(outcome.folder),
            }
        )
    return csv_text(rows)


def table_csv(table: Table) -> str:
    """A line for each method on each task."""
    rows = []
    for entry in table.entries:
        low, high, over = entry.interval
        rows.append(
            {
                **_names(entry.setup),
                "metric": entry.metric,
                "seeds": len(entry.seeds),
                "missing_seeds": entry.missing,
                "validation": entry.validation,
                "test": entry.test,
                "ci_low": low,
                "ci_high": high,
                "ci_over": over,
                "reference": table.reference,
                "p": entry.p,
                "p_over": entry.p_over,
                "p_holm": entry.p_holm,
                "beyond_budget": table.beyond_budget(entry.setup) if table.budget else None,
                **(entry.trained._asdict() if entry.trained else {}),
                **_cost_columns(entry.cost),
                "note": entry.note,
            }
        )
    return csv_text(rows)


def trials_csv(searches: Mapping[Setup, Sequence[Trial]]) -> str:
    """A line for each trial of each search."""
    rows = []
    for setup, trials in searches.items():
        scores = [trial.score for trial in trials if trial.score is not None]
        best = next((trial for trial in trials if scores and trial.score == max(scores)), None)
        for number, trial in enumerate(trials):
            rates = {f"optimizer.{group}_lr": rate for group, rate in trial.rates.items()}
            chosen = {"validation": trial.score, "chosen": trial is best, "reason": trial.reason}
            rows.append({**_names(setup), "trial": number, **chosen, **rates})
    return csv_text(rows)


def to_markdown(table: Table) -> str:
    """Scores and costs as two Markdown tables, with what the marks mean."""
    parts, escaped = [], r"\|"
    for title, head, rows in _both(table):
        lines = [f"**{title}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(cell.replace('|', escaped) for cell in row)} |" for row in rows]
        parts.append("\n".join(lines))
    parts += [" ".join(legend(table))]
    notes = [f"- {entry.setup.label} on {_place(table, entry)}: {entry.note}" for entry in table.entries if entry.note]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def to_latex(table: Table) -> str:
    """Scores and costs as two tables for a paper; they need the package booktabs."""
    parts = [r"% \usepackage{booktabs}"]
    for title, head, rows in _both(table):
        caption = latex(f"{title}. {' '.join(legend(table))}" if "Costs" not in title else f"{title}.")
        lines = [r"\begin{table}", r"\centering", f"\\caption{{{caption}}}"]
        lines += [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
        lines += [_latex_row(head), r"\midrule", *map(_latex_row, rows), r"\bottomrule"]
        parts.append("\n".join([*lines, r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def latex(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)


def legend(table: Table) -> list[str]:
    """What the numbers and marks mean, in sentences; only of what the table has."""
    over = {entry.interval.over for entry in table.entries}
    sentences = []
    if "seeds" in over:
        sentences.append("Mean ± half of its 95 % confidence interval over the seeds (Student's t).")
    if "examples" in over:
        sentences.append("(e): one seed; the 95 % interval is over the test examples (bootstrap).")
    if table.reference and any(entry.p is not None for entry in table.entries):
        sentences.append(
            f"*: differs from {table.reference} (paired permutation test, two-sided, Holm-corrected, p < 0.05)."
        )
    if any(table.beyond_budget(entry.setup) for entry in table.entries):
        sentences.append(f"†: not bound by the budget of {table.budget:,} parameters.")
    if any(entry.missing and entry.seeds for entry in table.entries):
        sentences.append("(n): so many seeds only.")
    return sentences


def label_of(table: Table, setup: Setup) -> str:
    """A row's name: the method, what is varied, and the backbone where there are several."""
    several = len({entry.setup.backbone for entry in table.entries}) > 1
    name = f"{backbone_label(setup.backbone)}: {setup.label}" if several else setup.label
    return f"{name} †" if table.beyond_budget(setup) else name


def _both(table: Table) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of the scores, and of the costs where they were measured."""
    metrics = {entry.setup.task: entry.metric for entry in table.entries if entry.metric}
    head = ["method", "trained of its own", *(f"{task} {metrics.get(task, '')}".strip() for task in table.tasks())]
    yield "Test scores", head, _rows(table, lambda entry: [_score(entry)], first=_own)
    if any(entry.cost for entry in table.entries):
        devices = ", ".join(sorted({entry.cost.device for entry in table.entries if entry.cost}))
        names = ("step, ms", "memory, MiB", "answer, ms")
        head = ["method", "trained in all", *(f"{task}: {name}" for task in table.tasks() for name in names)]
        yield f"Costs on one {devices}", head, _rows(table, _costs, first=_percent)


def _rows(
    table: Table, fields: Callable[[Entry], list[str]], *, first: Callable[[Sequence[Entry]], str]
) -> list[list[str]]:
    rows = []
    for row in table.rows():
        entries = [table.find(row, task) for task in table.tasks()]
        known = [entry for entry in entries if entry is not None]
        empty = [""] * len(fields(known[0]))
        cells = [text for entry in entries for text in (empty if entry is None else fields(entry))]
        rows.append([label_of(table, known[0].setup), first(known), *cells])
    return rows


def _score(entry: Entry) -> str:
    if entry.test is None:
        return "not possible" if "not possible" in entry.note else "-"
    low, high, over = entry.interval
    text = f"{entry.test:.2f}"
    if low is not None and high is not None:
        text += f" ± {(high - low) / 2:.2f}" if over == "seeds" else f" [{low:.2f}, {high:.2f}] (e)"
    text += f" ({len(entry.seeds)})" if entry.missing else ""
    return text + ("*" if entry.significant else "")


def _costs(entry: Entry) -> list[str]:
    cost = entry.cost
    if cost is None:
        return ["-"] * 3
    step, answer = (f"{1000 * seconds:.1f}" for seconds in (cost.step_seconds, cost.latency_seconds))
    return [step, f"{cost.peak_memory_bytes / 2**20:,.0f}", answer]


def _own(entries: Sequence[Entry]) -> str:
    """Parameters of the method's own: one number, or the range over the tasks."""
    sizes = sorted({entry.trained.own for entry in entries if entry.trained})
    return " to ".join(f"{size:,}" for size in dict.fromkeys([*sizes[:1], *sizes[-1:]])) or "-"


def _percent(entries: Sequence[Entry]) -> str:
    """The share of the model that trains, with the visual embedding and heads, in per cent."""
    shares = sorted(_share(entry.cost) for entry in entries if entry.cost)
    texts = [f"{share:.2f}" for share in (*shares[:1], *shares[-1:])]
    return f"{' to '.join(dict.fromkeys(texts))} %" if texts else "-"


def _share(cost: Cost) -> float:
    return float(100 * (cost.own + cost.visual + cost.heads) / cost.total)


def _place(table: Table, entry: Entry) -> str:
    several = len({one.setup.backbone for one in table.entries}) > 1
    return f"{entry.setup.task} with {entry.setup.backbone}" if several else entry.setup.task


def _names(setup: Setup) -> dict[str, Any]:
    return {"backbone": setup.backbone, "task": setup.task, "method": setup.method, **dict(setup.varied)}


def _cost_columns(cost: Cost | None) -> dict[str, Any]:
    if cost is None:
        return {}
    return {
        "total": cost.total,
        "percent": round(_share(cost), 4),
        "step_seconds": cost.step_seconds,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "latency_seconds": cost.latency_seconds,
        "device": cost.device,
    }


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows with all columns that any of them has, in the order in which they first come."""
    lines = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(latex, cells))} \\\\"
