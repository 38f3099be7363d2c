"""What the runs of a transfer are and found: means over the seeds, the source that validation chooses, the tables."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from feature_extraction.durable import write_durably
from feature_extraction.errors import UsageError

SCRATCH = "scratch"  # the name of a start without a source


class Start(NamedTuple):
    """What runs begin with: a source and which of its parts, or nothing."""

    name: str
    parts: str = ""  # as method.init_parts; empty without a source
    path: Path | None = None  # the source's adapter folder
    digest: str | None = None  # of its tensors


class Cell(NamedTuple):
    """One run."""

    start: Start
    shots: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where it lies."""
        name, parts, *_ = self.start
        return Path("runs", f"{name}-{parts}" if parts else name, f"k{self.shots}-seed{self.seed}")


class Outcome(NamedTuple):
    """The scores of one run."""

    cell: Cell
    validation: Mapping[str, float | None]
    test: Mapping[str, float | None]


class Row(NamedTuple):
    """The selection metric of the runs with one start and so many examples."""

    shots: int
    source: str
    parts: str
    seeds: int
    validation_mean: float | None
    validation_std: float | None  # of a sample; None of a single run
    test_mean: float | None
    test_std: float | None
    chosen: bool  # no source has a higher mean on validation, with as many examples and the same parts


def source_names(paths: Sequence[Path]) -> dict[str, Path]:
    """What each source is called: its run folder's name, and its task's if the path goes on to it.

    Raises:
        UsageError: two are called the same.
    """
    names: dict[str, Path] = {}
    for path in paths:
        parts = [part for part in path.resolve().parts if part != "adapter"]
        name = "-".join(parts[-2:]) if path.resolve().parent.name == "adapter" else parts[-1]
        if name in names or name == SCRATCH:
            other = names.get(name, "the start without a source")
            raise UsageError(f"--sources: {path} and {other} are both called {name!r}. Rename one of the folders")
        names[name] = path
    return names


def compare(outcomes: Sequence[Outcome], metric: str) -> list[Row]:
    """The means over the seeds, in the order of the outcomes."""
    groups: dict[tuple[int, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        start, shots, _ = outcome.cell
        groups.setdefault((shots, start.name, start.parts), []).append(outcome)
    rows = [
        Row(
            *(shots, name, parts, len(group)),
            *_mean_and_std([outcome.validation.get(metric) for outcome in group]),
            *_mean_and_std([outcome.test.get(metric) for outcome in group]),
            chosen=False,
        )
        for (shots, name, parts), group in groups.items()
    ]
    best: dict[tuple[int, str], Row] = {}
    for row in rows:
        rival = best.get((row.shots, row.parts))
        if row.parts and (rival is None or _validation(row) > _validation(rival)):
            best[row.shots, row.parts] = row
    return [row._replace(chosen=row in best.values()) for row in rows]


def table(rows: Sequence[Row], *, task: str, metric: str) -> str:
    """The rows in Markdown."""
    lines = [
        f"Few-shot transfer to {task}: {metric}, mean ± sample standard deviation over the seeds. Of the sources with "
        "as many examples and the same parts, the one with the highest mean on validation is chosen.",
        "",
        "| examples | source | parts | seeds | validation | test | chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = _text(row.validation_mean, row.validation_std), _text(row.test_mean, row.test_std)
        cells = (row.shots, row.source, row.parts or "-", row.seeds, *scores, "yes" if row.chosen else "")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def write_results(
    folder: Path, outcomes: Sequence[Outcome], *, task: str, metric: str, sources: Mapping[str, Path]
) -> str:
    """Write results.md, results.csv and results.json, which has all metrics of all runs; the table comes back."""
    rows = compare(outcomes, metric)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    content = {
        "task": task,
        "metric": metric,
        "sources": {name: str(path.resolve()) for name, path in sources.items()},
        "rows": [row._asdict() for row in rows],
        "runs": [_record(outcome) for outcome in outcomes],
    }
    markdown = table(rows, task=task, metric=metric)
    write_durably(folder / "results.csv", lines.getvalue().encode())
    write_durably(folder / "results.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    write_durably(folder / "results.md", markdown.encode())
    return markdown


def _record(outcome: Outcome) -> dict[str, object]:
    start, shots, seed = outcome.cell
    return {
        "source": start.name,
        "parts": start.parts,
        "shots": shots,
        "seed": seed,
        "folder": str(outcome.cell.folder),
        "validation": outcome.validation,
        "test": outcome.test,
    }


def _mean_and_std(scores: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Both None where a score is missing."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _validation(row: Row) -> float:
    return -math.inf if row.validation_mean is None else row.validation_mean


def _text(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "null"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
